// Launching the kernels: plain arguments in, work on a stream out. No policy here; tuning.hpp chooses, the dispatchers
// fill in.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

#include "epistle/layout.hpp"
#include "epistle/types.hpp"

#include "dispatch/cuda/device_types.hpp"

namespace epistle::cuda {

/// The halves of a call that a kernel does.
enum PhaseBits : std::uint32_t { kSendPhase = 1, kReceivePhase = 2, kBothPhases = 3 };

struct PrepareArgs {
  DeviceGroup group;
  DispatchLayout layout;
  HandleArrays handle;
  const void* expert_ids = nullptr;
  const float* weights = nullptr;
  bool ids_are_64_bit = false;
  bool refuse = false;         ///< this rank's host has refused the input: tell the others
  std::uint64_t prepare_id = 0;
  bool drop_overflow = false;  ///< what does not fit is dropped; otherwise the whole routing is refused
  Summary* summary = nullptr;
};

/// Which blocks of a dispatch do what, and how.
struct MoveTuning {
  int num_blocks = 1;
  int remote_blocks = 1;  ///< the first ones move rows to peers, the others local and duplicate rows; equal to
                          ///< num_blocks: every block does both
  bool bulk = false;      ///< bulk copies through shared memory (sm_90 and later)
};

struct MoveArgs {
  DeviceGroup group;
  DispatchLayout layout;
  HandleArrays handle;
  MoveTuning tuning;
  const std::byte* rows = nullptr;
  const std::byte* scales = nullptr;
  std::int64_t row_bytes = 0;
  std::int64_t scale_bytes = 0;
  BufferSection target = BufferSection::kReceiveRows;
  std::uint32_t phases = kBothPhases;
  bool refuse = false;
  bool zero_padding = true;
};

struct SumTuning {
  int num_blocks = 1;
  int push_blocks = 1;  ///< the first ones send rows or partial sums to their sources, the others sum; equal to
                        ///< num_blocks: every block does both
};

struct SumArgs {
  DeviceGroup group;
  DispatchLayout layout;
  HandleArrays handle;
  SumTuning tuning;
  const std::byte* rows = nullptr;  ///< expert outputs of this rank
  std::byte* out = nullptr;
  DType dtype = DType::kBf16;
  bool weighted = false;
  bool pull = false;  ///< read the peers' expert outputs where they lie (flat sums of expert rows)
  std::uint32_t phases = kBothPhases;
  bool refuse = false;
};

struct WeightGradientArgs {
  DeviceGroup group;
  DispatchLayout layout;
  HandleArrays handle;
  float* grad_topk_weights = nullptr;  ///< null: take part in the exchange only
  int num_blocks = 1;
};

struct ScaleRowsArgs {
  DispatchLayout layout;
  HandleArrays handle;
  const std::byte* saved_rows = nullptr;
  std::byte* grad_rows = nullptr;
  float* grad_weights = nullptr;
  DType dtype = DType::kBf16;
  int num_blocks = 1;
};

inline constexpr int kPrepareThreads = 512;
inline constexpr int kMoveThreads = 512;
inline constexpr int kSumThreads = 512;

/// Tokens that one pass of a block places.
inline constexpr int kTileTokens = 256;

/// Shared memory of prepare, in bytes; the limit on ranks and experts.
[[nodiscard]] std::int64_t prepare_shared_bytes(int num_ranks, int num_experts) noexcept;

/// Loads every kernel and raises its shared memory limit, so that no first launch has to wait for a device on which
/// other ranks' kernels are waiting.
[[nodiscard]] cudaError_t load_kernels(int prepare_shared_bytes);

[[nodiscard]] cudaError_t launch_prepare(const PrepareArgs& args, int num_blocks, cudaStream_t stream);
[[nodiscard]] cudaError_t launch_move(const MoveArgs& args, cudaStream_t stream);
[[nodiscard]] cudaError_t launch_sum(const SumArgs& args, cudaStream_t stream);
[[nodiscard]] cudaError_t launch_weight_gradients(const WeightGradientArgs& args, cudaStream_t stream);
[[nodiscard]] cudaError_t launch_scale_rows(const ScaleRowsArgs& args, cudaStream_t stream);

}  // namespace epistle::cuda
