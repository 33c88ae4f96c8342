// Tables of measured times in the calibration format: comma-separated, a header line, one measurement or a pair of
// phases per line. Which columns there are tells what was measured.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "cost/fit/calibrated_curve.hpp"

namespace epistle {

/// An observation and the curve that it belongs to.
struct MeasuredTime {
  std::string curve;  ///< name of a CurveFamily
  Observation observation;
  std::size_t line = 0;  ///< in the file, from 1
};

struct MeasurementTable {
  std::string name;  ///< stem of the file
  std::vector<MeasuredTime> times;
  std::size_t num_rows = 0;                ///< lines of the table that were taken; a line may hold two times
  std::vector<std::string> left_out = {};  ///< what the model has no terms for: where, what, how many lines
};

/// Throws kCorruptInput that names file, line and column, kUnsupported where every line is of a kind that is left out.
[[nodiscard]] MeasurementTable parse_measurements(std::string_view text, std::string_view file);

/// A table, or a record of epistle bench or compare where the name ends in .json. Throws kNotFound where there is no
/// such file; else as parse_measurements and parse_bench_record.
[[nodiscard]] MeasurementTable read_measurements(const std::string& file);

}  // namespace epistle
