// Fits all curves that tables of measurements speak of, and says how well they forecast others.
#pragma once

#include <map>
#include <span>
#include <string>
#include <vector>

#include "cost/fit/calibrated_curve.hpp"
#include "cost/fit/measurement_table.hpp"

namespace epistle {

class Calibration {
 public:
  /// Times that agree in all but their value are merged.
  explicit Calibration(std::span<const MeasurementTable> tables);

  /// Where no measurement of a curve was given, its forecast rests on priors. `curve` is the name of a CurveFamily.
  [[nodiscard]] Forecast predict(const std::string& curve, const Observation& wanted) const;
  [[nodiscard]] bool is_measured(const std::string& curve) const;
  /// All there are, by name.
  [[nodiscard]] const std::map<std::string, CalibratedCurve>& curves() const noexcept { return curves_; }

 private:
  std::map<std::string, CalibratedCurve> curves_;
};

struct WorstTime {
  std::string label;
  std::size_t line = 0;
  double measured_us = 0;
  double predicted_us = 0;
  double ape = 0;  ///< absolute error, in percent of the measured time
};

struct TableErrors {
  std::string table;
  double median_ape = 0;   ///< percent
  double p90_ape = 0;      ///< percent
  double coverage_90 = 0;  ///< share of times inside their 90% interval
  std::size_t num_rows = 0;
  std::size_t num_times = 0;
  WorstTime worst;
  std::vector<std::string> without_measurements;  ///< curves of the table that rest on priors
};

[[nodiscard]] TableErrors evaluate(const Calibration& calibration, const MeasurementTable& table);

}  // namespace epistle
