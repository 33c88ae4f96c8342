// What is asked of a tuning table, and what it says: which variant of a kernel a call uses, and on how many SMs.
#pragma once

#include <cstdint>

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

}  // namespace epistle::cuda
