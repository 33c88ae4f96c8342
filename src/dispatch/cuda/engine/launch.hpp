// Launching the kernels that every dispatcher uses: plain arguments in, work on a stream out. And what an engine hands
// to a dispatcher whose rows are to be moved or summed. No policy here: tuning tables choose, the dispatchers fill in.
#pragma once

#include <cstdint>
#include <initializer_list>

#include <cuda_runtime_api.h>

#include "epistle/types.hpp"

#include "dispatch/cuda/device/device_types.hpp"
#include "layout/dispatch_layout.hpp"

namespace epistle::cuda {

/// The halves of a call that a kernel does.
enum PhaseBits : std::uint32_t { kSendPhase = 1, kReceivePhase = 2, kBothPhases = 3 };

struct PrepareArgs {
  DeviceGroup group;
  DispatchLayout layout;
  HandleArrays handle;
  const void* expert_ids = nullptr;
  const float* weights = nullptr;  ///< null: all 1
  bool ids_are_64_bit = false;
  std::int64_t id_stride = 0;      ///< ids from one token to the next, at least top_k
  std::int64_t weight_stride = 0;  ///< weights likewise; of no meaning without weights
  /// In device memory: the first so many of the handle's tokens are routed, the others as if they had no expert. Values
  /// below 0 or above the number of the handle's tokens count as these. Null: all.
  const std::int32_t* num_tokens = nullptr;
  DeviceCall call = DeviceCall::kPrepare;
  std::uint64_t prepare_id = 0;
  bool drop_overflow = false;  ///< what does not fit is dropped; otherwise the whole routing is refused
  Summary* summary = nullptr;
  bool announces_dispatch = false;  ///< one comes behind this prepare for sure, with nothing in between
  std::int32_t follow_buffer = 0;   ///< MoveArgs::buffer of that dispatch
  int tile_tokens = 0;              ///< tokens that one pass of a block places; see choose_prepare_tile
  std::int32_t num_experts = 0;     ///< that ids may name
  /// [num_experts] tokens of this rank so far, by the ids that were given.
  unsigned long long* expert_tokens = nullptr;
  unsigned long long* lost_tokens = nullptr;  ///< [num_experts] likewise, of ranks that are left out
  // Where experts are placed:
  SlotTables slots;
  std::int64_t first_position = 0;  ///< of this rank's tokens
  std::uint64_t step_seed = 0;
  const std::uint64_t* step_seed_at = nullptr;  ///< in device memory; null: as above

  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr bool places_experts() const noexcept { return slots.policy != nullptr; }
};

/// What the shared memory of prepare depends on.
struct PrepareShape {
  int num_ranks = 1;
  int num_experts = 0;
  int top_k = 0;
};
struct PrepareTile {
  int num_tokens = 0;             ///< 0: not even the smallest tile fits
  std::int64_t shared_bytes = 0;  ///< of the tile; of the smallest one where none fits
};
/// The largest tile of tokens whose tables fit into `max_shared_bytes`.
[[nodiscard]] PrepareTile choose_prepare_tile(const PrepareShape& shape, std::int64_t max_shared_bytes) noexcept;

struct PrepareLaunch {
  int num_blocks = 1;
  std::int64_t shared_bytes = 0;
};

/// Which blocks of a dispatch do what, and how.
struct MoveTuning {
  int num_blocks = 1;
  int remote_blocks = 1;  ///< the first ones move rows to peers, the others local and duplicate rows; equal to
                          ///< num_blocks: every block does both
  bool bulk = false;      ///< bulk copies through shared memory (sm_90 and later)
};

/// How the rows of tokens and their scales lie in the caller's memory; all in bytes. Whatever it is, they arrive dense.
struct TokenStrides {
  std::int64_t row = 0;  ///< from one token's row to the next, at least row_bytes
  // Of no meaning without scales:
  std::int64_t scale_row = 0;            ///< from the first scale of one token to that of the next
  std::int64_t scale_column = 0;         ///< from one scale of a token to the next
  std::int64_t scale_element_bytes = 0;  ///< of one scale; divides scale_bytes

  /// Whether the scales of one token lie one behind the other.
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr bool has_dense_scales() const noexcept {
    return scale_column == scale_element_bytes;
  }
};

struct MoveArgs {
  DeviceGroup group;
  DispatchLayout layout;
  HandleArrays handle;
  MoveTuning tuning;
  const std::byte* rows = nullptr;
  const std::byte* scales = nullptr;
  std::int64_t row_bytes = 0;
  std::int64_t scale_bytes = 0;  ///< of one row; 0 = none
  TokenStrides strides;
  BufferSection target = BufferSection::kReceiveRows;
  /// The copy of `target` (and of the scales) that this rank receives into; the peers say theirs in their words. The
  /// same in both halves of a call.
  std::int32_t buffer = 0;
  DeviceCall call = DeviceCall::kDispatch;
  std::uint32_t phases = kBothPhases;
  std::uint32_t send_half = 0;  ///< its number, for what the device finds in it
  bool zero_padding = true;
  /// Behind the prepare of the same handle, with nothing in between: starts as soon as that has placed the rows, while
  /// it still describes them.
  bool behind_prepare = false;
  int prepare_blocks = 0;  ///< of that prepare
  /// The second half of a dispatch with a routing of its own: no call at all where the first half was refused.
  bool skips_void = false;
};

[[nodiscard]] inline bool lays_scales_in_columns(const DispatchLayout& layout) noexcept {
  return layout.params().scale_bytes > 0 && layout.params().scale_order == ScaleOrder::kColumns;
}

struct SumTuning {
  int num_blocks = 1;
  int push_blocks = 1;  ///< the first ones send rows or partial sums to their sources, the others sum; equal to
                        ///< num_blocks: every block does both
  bool bulk = false;    ///< rows come through shared memory (sm_90 and later)
};

struct SumArgs {
  DeviceGroup group;
  DispatchLayout layout;
  HandleArrays handle;
  SumTuning tuning;
  const std::byte* rows = nullptr;  ///< expert outputs of this rank, dense
  std::byte* out = nullptr;
  std::int64_t out_stride = 0;  ///< bytes from one token's row of `out` to the next
  DType dtype = DType::kBf16;
  bool weighted = false;
  bool pull = false;  ///< read the peers' rows where they lie: token rows, and flat sums of expert rows
  /// The copy of kCombineRows in which this rank's expert outputs lie, where they are pulled. The same in all kernels
  /// of a call: its halves, and weight gradients before sums.
  std::int32_t buffer = 0;
  DeviceCall call = DeviceCall::kCombine;
  std::uint32_t phases = kBothPhases;
  std::uint32_t send_half = 0;  ///< its number, for what the device finds in it
};

struct WeightGradientArgs {
  DeviceGroup group;
  DispatchLayout layout;
  HandleArrays handle;
  DeviceCall call = DeviceCall::kDispatchBackwardWithWeights;
  std::int32_t buffer = 0;             ///< SumArgs::buffer of the sums that follow; the gradients have one copy
  float* grad_topk_weights = nullptr;  ///< null: take part in the exchange only
  bool ends_call = false;              ///< otherwise sums follow in the same call
  int num_blocks = 1;
};

struct ScaleRowsArgs {
  const LocalState* local = nullptr;  ///< null: the call in which the rows came has not failed
  std::int64_t max_rows = 0;          ///< that the caller has; those of slots that no expert is in lie behind
  DispatchLayout layout;
  HandleArrays handle;
  const std::byte* saved_rows = nullptr;
  std::int64_t saved_stride = 0;   ///< bytes from one saved row to the next
  std::byte* grad_rows = nullptr;  ///< dense
  float* grad_weights = nullptr;
  DType dtype = DType::kBf16;
  int num_blocks = 1;
};

/// Rows of bf16 to fp8 with dense rows of scales.
struct QuantiseArgs {
  const std::byte* rows = nullptr;
  std::int64_t row_stride = 0;  ///< bytes
  std::int64_t num_tokens = 0;
  std::int64_t hidden = 0;
  bool powers_of_two = false;
  ScaleFormat scale_format = ScaleFormat::kFp32;
  std::int64_t scale_bytes = 0;  ///< of a row
  std::byte* out_rows = nullptr;
  std::byte* out_scales = nullptr;
  bool early_start = false;
  int num_blocks = 1;
};

/// Takes part in a call in the place of the one that this rank has refused.
struct RefuseArgs {
  DeviceGroup group;
  Phase phase = Phase::kNone;
  const HandleTotals* behind = nullptr;  ///< as MoveArgs::skips_void
};

inline constexpr int kPrepareThreads = 1024;
inline constexpr int kMoveThreads = 512;
inline constexpr int kSumThreads = 512;

/// GPUs of this compute capability and later have bulk copies between global and shared memory.
inline constexpr int kFirstMajorWithBulkCopies = 9;
/// What they take must begin at, and be, a multiple of this.
inline constexpr std::int64_t kBulkCopyBytes = 16;

/// Most tokens that one pass of a block of prepare places.
inline constexpr int kMaxTileTokens = 512;

/// Loads the kernels that every dispatcher uses, so that no first launch has to wait for a device on which other ranks'
/// kernels are waiting; raises the limit of shared memory of those that need it.
[[nodiscard]] cudaError_t load_kernels();
[[nodiscard]] cudaError_t load_kernels(std::initializer_list<const void*> kernels);
/// Raises the shared memory limit of a kernel to all that a block of the current device can have: limits belong to the
/// kernel, and another dispatcher may need more than this one.
[[nodiscard]] cudaError_t allow_all_shared_memory(const void* kernel);

[[nodiscard]] cudaError_t launch_prepare(const PrepareArgs& args, const PrepareLaunch& launch, cudaStream_t stream);
[[nodiscard]] cudaError_t launch_refuse(const RefuseArgs& args, cudaStream_t stream);
[[nodiscard]] cudaError_t launch_quantise(const QuantiseArgs& args, cudaStream_t stream);
[[nodiscard]] cudaError_t launch_weight_gradients(const WeightGradientArgs& args, cudaStream_t stream);
[[nodiscard]] cudaError_t launch_scale_rows(const ScaleRowsArgs& args, cudaStream_t stream);

}  // namespace epistle::cuda
