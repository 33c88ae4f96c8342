// Dispatch and combine.
//
//   prepare    routing table  -> handle   counts are exchanged, every row gets its place (collective)
//   dispatch   handle, rows   -> rows at the ranks of their experts (collective, repeatable with the same handle)
//   combine    handle, rows   -> sums at the ranks of their tokens (collective, repeatable)
//
// Order of sums. Every backend, group kind, worker count and SM count gives the same bits. All arithmetic is IEEE fp32,
// round to nearest even, a product rounded before it is added (no fused multiply-add), sums started at +0; "round" is
// the rounding to the payload type. With R(t) the ranks that hold experts of token t, y the rows given to combine, w
// the routing weights, and dropped assignments left out:
//
//   expert rows (expert_major, expert_slots)
//     hierarchical   out[t] = round( sum over r in R(t), r ascending: round( sum over the token's experts e on r, in
//                             top-k order: w[t,e] * y[e,t] ) )
//     flat           out[t] = round( sum over the token's experts e, in top-k order: w[t,e] * y[e,t] )
//   token rows (token_major): one row y[r,t] per (token, rank)
//     W[r,t] = sum of the weights of the token's experts on r, in top-k order
//     hierarchical   out[t] = round( sum over r in R(t), r ascending: W[r,t] * y[r,t] )
//     flat           the same, ranks in the order of their first appearance in the token's top-k
//
// Without weights the products are left out (no multiplication). A token without experts gives +0. A NaN that a sum or
// a product yields is stored as the quiet NaN of its type with no other bits set (bf16 7fc0, fp16 7e00, fp32 7fc00000).
//
// Backward. The backward pass of dispatch is combine of the gradients without weights, in the same order; the backward
// pass of combine is dispatch of the gradients with the cached handle, each row times its weight (round(w * g)) where
// combine applied weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "epistle/error.hpp"
#include "epistle/group.hpp"
#include "epistle/layout.hpp"
#include "epistle/routing.hpp"
#include "epistle/types.hpp"

namespace epistle {

/// Must be equal on all ranks of a group (checked when a dispatcher is created).
struct DispatcherConfig {
  std::int64_t hidden = 0;  ///< elements per row; for kRaw bytes per row. hidden * dtype_bytes must be a multiple of 16
  DType dtype = DType::kBf16;
  std::int64_t raw_scale_bytes = 0;  ///< kRaw only: scale bytes per row, at most 2^26
  std::int32_t num_experts = 0;      ///< divisible by the ranks or not; see ExpertPartition
  std::int32_t top_k = 0;
  std::int64_t max_tokens = 0;  ///< most tokens that any rank gives in one call
  OutputLayout layout = OutputLayout::kTokenMajor;
  std::int32_t alignment = 1;  ///< kExpertMajor: rows that every expert's group is padded to; 1 to 1024
  Sizing sizing = Sizing::kExact;
  std::int64_t capacity_rows =
      0;  ///< kCapacity: output rows per rank. kExpertSlots (any sizing): rows per local expert
  OverflowPolicy overflow = OverflowPolicy::kError;
  CombineMode combine = CombineMode::kHierarchical;
  bool apply_weights = true;          ///< combine multiplies by the routing weights
  bool zero_padding = true;           ///< dispatch writes zeros to padding rows; false leaves there what was there
  DType combine_dtype = DType::kRaw;  ///< type of expert outputs; kRaw = dtype, or kBf16 where dtype cannot be summed
  std::int64_t combine_hidden = 0;    ///< elements of an expert output row; 0 = hidden (kRaw: must be given to combine)
  std::int32_t num_workers = 1;  ///< threads that copy and sum for each rank, the caller's included; may differ by rank
};

/// Rows to dispatch: [num_tokens, hidden] row-major, contiguous. `scales` is [num_tokens, scale bytes of a row] for fp8
/// (fp32, ceil(hidden / 128) per row) and raw payloads with scales, otherwise null. 16-byte alignment is faster, not
/// required.
struct Payload {
  const void* rows = nullptr;
  const void* scales = nullptr;
  std::int64_t num_tokens = 0;
};

/// What a rank received. Pointers to rows stay valid until the next dispatch on the same dispatcher; pointers to the
/// description of the rows live as long as the handle.
struct DispatchOutput {
  std::byte* rows = nullptr;    ///< [num_rows, row_bytes]; padding rows are zero (see zero_padding)
  std::byte* scales = nullptr;  ///< [num_rows, scale_bytes]; null without scales; zero at padding rows likewise
  std::int64_t num_rows = 0;    ///< rows of the layout, padding included: what was received (exact), capacity_rows
                                ///< (capacity), or num_local_experts * capacity_rows (expert_slots)
  std::int64_t row_bytes = 0;
  std::int64_t scale_bytes = 0;
  /// Where the caller may write expert outputs [num_rows, combine_hidden] of combine_dtype to save combine a copy.
  std::byte* combine_rows = nullptr;

  const std::int32_t* src_rank = nullptr;   ///< [num_rows]; -1 at padding
  const std::int32_t* src_token = nullptr;  ///< [num_rows]; -1 at padding
  /// token_major: [num_rows, top_k] local expert index of each top-k position, -1 where it is not on this rank.
  /// Otherwise null.
  const std::int32_t* local_expert_ids = nullptr;
  /// token_major: [num_rows, top_k], 0 where the expert is not on this rank. Otherwise [num_rows], 0 at padding.
  const float* weights = nullptr;

  std::int32_t num_local_experts = 0;
  std::int32_t first_expert = 0;                 ///< global id of local expert 0
  const std::int64_t* expert_counts = nullptr;   ///< [num_local_experts] rows received, drops left out
  const std::int64_t* expert_begin = nullptr;    ///< [num_local_experts + 1] first row of each group; token_major: null
  std::int64_t num_dropped = 0;                  ///< assignments to this rank's experts that did not fit; -1 while a
                                                 ///< device has not told (see cuda.hpp)
  const std::int64_t* expert_dropped = nullptr;  ///< [num_local_experts]
};

/// Counts of one prepared routing as this rank saw it.
struct RoutingStats {
  std::int64_t num_tokens = 0;        ///< of this rank
  std::int64_t sent_rows = 0;         ///< rows this rank sends, itself included, once per (token, rank)
  std::int64_t sent_remote_rows = 0;  ///< of these, to other ranks
  std::int64_t received_rows = 0;     ///< rows this rank receives, once per (token, rank)
  std::int64_t received_remote_rows = 0;
  std::int64_t sent_remote_assignments = 0;  ///< (token, expert) assignments of this rank to other ranks' experts
  std::int64_t output_rows = 0;              ///< rows of the output layout without padding
  std::int64_t padding_rows = 0;
  std::int64_t dropped_by_this_rank = 0;  ///< this rank's own assignments that did not fit somewhere
  std::int64_t dropped_in_group = 0;      ///< over all ranks
};

/// Bytes that cross from one rank's memory to another's for one rank's tokens, rows and scales.
struct WireBytes {
  std::int64_t dispatch = 0;  ///< sent
  std::int64_t combine = 0;   ///< received back
};

class HandleState;

/// The layout of one prepared routing. Move-only; several can be alive at once. Must be released before the
/// dispatcher's group; it returns its storage to the dispatcher for the next prepare.
class Handle {
 public:
  Handle();
  ~Handle();
  Handle(Handle&&) noexcept;
  Handle& operator=(Handle&&) noexcept;
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;

  [[nodiscard]] bool valid() const noexcept { return state_ != nullptr; }
  [[nodiscard]] const RoutingStats& stats() const;
  /// The description of the rows this rank receives; row pointers are null until dispatch_receive fills in its result.
  [[nodiscard]] const DispatchOutput& output() const;

  /// For dispatchers; not part of the stable API.
  explicit Handle(std::shared_ptr<HandleState> state) noexcept;
  [[nodiscard]] HandleState* state() const noexcept { return state_.get(); }

 private:
  std::shared_ptr<HandleState> state_;
};

/// Every public call is collective: all ranks of the group make the same calls in the same order. Inputs are checked on
/// every rank before the first payload byte moves: the rank whose input is bad throws what is wrong with it, the others
/// throw kPeerRejected naming that rank, and the dispatcher stays usable. So it does when ranks make different calls at
/// once, of this or another dispatcher or of the group: all throw kShapeMismatch. A rank that runs out of memory, or
/// meets an error of the system, gives kOutOfMemory or kSystem on all ranks, and nothing has happened.
class Dispatcher {
 public:
  virtual ~Dispatcher() = default;
  Dispatcher(const Dispatcher&) = delete;
  Dispatcher& operator=(const Dispatcher&) = delete;

  [[nodiscard]] virtual std::string_view name() const noexcept = 0;
  [[nodiscard]] virtual const DispatcherConfig& config() const noexcept = 0;
  [[nodiscard]] virtual const DispatchLayout& layout() const noexcept = 0;
  /// Bytes of memory committed for this rank's buffers: what layout().buffer_bytes predicts for the largest call so
  /// far.
  [[nodiscard]] virtual std::int64_t buffer_bytes() const noexcept = 0;
  /// The same as the operating system counts it.
  [[nodiscard]] virtual std::int64_t resident_bytes() const = 0;

  /// What one dispatch and one combine with `handle` put on the wire, as this dispatcher moves rows.
  [[nodiscard]] virtual WireBytes wire_bytes(const Handle& handle) const = 0;

  /// Exchanges counts and gives every row its place. Throws kInvalidArgument (ids out of range or repeated in a row,
  /// more tokens than max_tokens, wrong top_k), kCapacityExceeded, kPeerRejected, kPeerLost, kTimeout.
  [[nodiscard]] virtual Handle prepare(const RoutingView& routing) = 0;

  /// Moves payload rows to the ranks of their experts. The send half returns when this rank's rows are on their way,
  /// the receive half when everything for this rank has arrived. `payload` must stay unchanged, and the handle alive,
  /// in between. `dispatch` is both, in one kernel on a device that can.
  virtual void dispatch_send(const Handle& handle, const Payload& payload) = 0;
  virtual const DispatchOutput& dispatch_receive(const Handle& handle) = 0;
  virtual const DispatchOutput& dispatch(const Handle& handle, const Payload& payload) {
    dispatch_send(handle, payload);
    return dispatch_receive(handle);
  }

  /// prepare and dispatch in one call, where nothing has to happen between them: a device can start moving rows while
  /// it still describes them. The result is in output() of the returned handle.
  [[nodiscard]] virtual Handle prepare_and_dispatch(const RoutingView& routing, const Payload& payload) {
    Handle handle = prepare(routing);
    static_cast<void>(dispatch(handle, payload));
    return handle;
  }

  /// Sums expert outputs back to their tokens, in the order documented above. `rows` is [output().num_rows,
  /// combine_hidden] of combine_dtype: output().combine_rows (no copy) or any other memory (one copy). `out` is
  /// [num_tokens, combine_hidden]; `out_bytes` its size, checked.
  virtual void combine_send(const Handle& handle, const void* rows) = 0;
  virtual void combine_receive(const Handle& handle, void* out, std::int64_t out_bytes) = 0;
  virtual void combine(const Handle& handle, const void* rows, void* out, std::int64_t out_bytes) {
    combine_send(handle, rows);
    combine_receive(handle, out, out_bytes);
  }

  /// Gradient of dispatch: grad_out[t] = unweighted sum of the token's grad_rows, in combine order.
  /// `grad_weights` (may be null) are the gradients of output().weights, in its shape; they come back to the source as
  /// `grad_topk_weights` [num_tokens, top_k] (null if and only if grad_weights is null on all ranks), 0 for positions
  /// without an expert.
  virtual void dispatch_backward(const Handle& handle, const void* grad_rows, const float* grad_weights, void* grad_out,
                                 std::int64_t grad_out_bytes, float* grad_topk_weights) = 0;

  /// Gradient of combine: the gradients [num_tokens, combine_hidden] of combine's result go to every row that took
  /// part, times the row's weight where weights are applied. Returns rows [num_rows, combine_hidden], zero at padding,
  /// in output().combine_rows; valid until the next combine or backward call. With weights applied, `saved_rows` (the
  /// rows given to combine; may be null) yields `grad_weights`, in the shape of output().weights: the dot product of
  /// saved row and gradient row, summed in 16 lanes (element i to lane i mod 16, ascending), lanes l and l+8 added,
  /// then l and l+4, l+2, l+1.
  virtual const std::byte* combine_backward(const Handle& handle, const void* grad_out, const void* saved_rows,
                                            float* grad_weights) = 0;

 protected:
  Dispatcher() = default;
};

/// Creates a dispatcher on the host device. Collective. Throws kNotFound for an unknown name, kInvalidArgument,
/// kShapeMismatch where the ranks' configurations differ (names field, ranks and values), kOutOfMemory.
[[nodiscard]] std::unique_ptr<Dispatcher> make_dispatcher(std::string_view name, Group& group,
                                                          const DispatcherConfig& config);

struct DispatcherInfo {
  std::string_view name;
  std::string_view summary;
};

/// The dispatchers this build has, in order of preference.
[[nodiscard]] const std::vector<DispatcherInfo>& dispatcher_registry() noexcept;

}  // namespace epistle
