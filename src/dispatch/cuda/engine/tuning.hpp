// Which variant of a kernel a call uses, and on how many SMs: read from a table that is data (tuning_table.hpp), by
// call, layout and number of tokens. Pure: the device's properties come in as values.
#pragma once

#include <cstdint>
#include <string>

#include "epistle/config.hpp"

#include "dispatch/cuda/engine/launch.hpp"
#include "layout/dispatch_layout.hpp"

namespace epistle::cuda {

enum class TunedCall : std::int32_t {
  kDispatch,
  kColdDispatch,  ///< behind its prepare, overlapping it
  kCombine,
};

/// What a choice depends on.
struct TuningQuery {
  TunedCall call = TunedCall::kDispatch;
  OutputLayout layout = OutputLayout::kTokenMajor;
  std::int64_t num_tokens = 0;  ///< of this rank
  std::int64_t row_bytes = 0;   ///< of what travels
  int num_ranks = 1;
  int num_sms = 0;        ///< wanted by the user; 0 = left to the table
  int sm_share = 1;       ///< SMs that this rank may use at most: the GPU's, divided by the ranks on it
  int compute_major = 9;  ///< of the GPU
  CudaMover mover = CudaMover::kAuto;
};

struct TuningRow;

struct TuningChoice {
  int num_blocks = 1;
  int peer_blocks = 1;  ///< blocks that serve peers; equal to num_blocks: all do everything
  bool bulk = false;
  const TuningRow* row = nullptr;
};

[[nodiscard]] TuningChoice choose(const TuningQuery& query);

/// SMs that pack rows for the copy engines, where the routing asks for packing.
[[nodiscard]] int pack_blocks(const TuningQuery& query) noexcept;

/// The choice and where it was measured, for people.
[[nodiscard]] std::string describe(const TuningQuery& query);

}  // namespace epistle::cuda
