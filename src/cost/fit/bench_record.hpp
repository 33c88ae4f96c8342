// Records of epistle bench and epistle compare as measurements.
#pragma once

#include <string_view>

#include "cost/fit/measurement_table.hpp"

namespace epistle {

/// The times of dispatch and combine of every dispatcher that has a curve, in a record of epistle bench or epistle
/// compare. A dispatch is one of a new routing, so what the exchange of counts takes is part of it. Throws
/// kCorruptInput that names the file and what is missing; kUnsupported where a record is whole and its times tell
/// nothing of a curve, as those of ranks that share a GPU.
[[nodiscard]] MeasurementTable parse_bench_record(std::string_view text, std::string_view file);

}  // namespace epistle
