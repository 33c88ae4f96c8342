// Records of epistle bench as measurements.
#pragma once

#include <string_view>

#include "cost/fit/measurement_table.hpp"

namespace epistle {

/// The times of dispatch and combine of each dispatcher of Epistle, ranks with a GPU of their own. Throws kCorruptInput
/// that names the file and what is missing; a record without such times is one.
[[nodiscard]] MeasurementTable parse_bench_record(std::string_view text, std::string_view file);

}  // namespace epistle
