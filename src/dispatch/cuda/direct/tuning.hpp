// Which variant of a kernel a call uses, and on how many SMs: read from a table that is data (tuning_table.hpp), by
// call, layout and number of tokens. Pure: the device's properties come in as values.
#pragma once

#include <string>

#include "dispatch/cuda/engine/tuning.hpp"

namespace epistle::cuda {

[[nodiscard]] TuningChoice choose(const TuningQuery& query);

/// SMs that pack rows for the copy engines, where the routing asks for packing.
[[nodiscard]] int pack_blocks(const TuningQuery& query) noexcept;

/// The choice and where it was measured, for people.
[[nodiscard]] std::string describe(const TuningQuery& query);

}  // namespace epistle::cuda
