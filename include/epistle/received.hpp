// What calls give back: a handle on a prepared routing, a lease on received rows, and a call that is under way.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "epistle/export.hpp"
#include "epistle/types.hpp"
#include "epistle/views.hpp"

namespace epistle {

namespace device {
struct RowFlags;  // epistle/device/row_flags.hpp
}  // namespace device

class HandleState;
class RowBuffer;
struct CallAccess;

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
  std::int64_t dropped_here = 0;          ///< assignments to this rank's experts that did not fit
  std::int64_t dropped_in_group = 0;      ///< over all ranks
  /// This rank's assignments to experts of ranks that are masked out (Group::set_mask). They go nowhere, count nowhere
  /// else, and sums run over the rest.
  std::int64_t lost_by_this_rank = 0;
};

/// What the rows are that a rank receives. Pointers are memory of the dispatcher's device and live as long as the
/// handle; on CUDA they are filled when the stream gets there.
struct RowDescription {
  /// Rows of the layout, padding included: what is received (exact), the capacity, or all blocks.
  std::int64_t num_rows = 0;
  const std::int32_t* src_rank = nullptr;   ///< [num_rows]; -1 at padding
  const std::int32_t* src_token = nullptr;  ///< [num_rows]; -1 at padding
  /// token_major: [num_rows, top_k] local expert of each top-k position, -1 where it is not on this rank. Otherwise
  /// null.
  const std::int32_t* local_experts = nullptr;
  /// Expert layouts: [num_rows] local expert of the row, -1 at padding. token_major: null.
  const std::int32_t* row_expert = nullptr;
  /// token_major: [num_rows, top_k], 0 where the expert is not on this rank. Otherwise [num_rows], 0 at padding.
  const float* weights = nullptr;

  /// Where experts are placed (Placement), local experts are this rank's slots, in slot order.
  std::int32_t num_local_experts = 0;
  std::int32_t first_expert = 0;  ///< global id of local expert 0; -1 where experts are placed
  /// Placement::generation() of the placement that the routing was prepared with: whose experts the slots hold.
  std::uint64_t placement_generation = 0;
  const std::int32_t* expert_counts = nullptr;   ///< [num_local_experts] rows received, drops left out
  const std::int32_t* expert_begin = nullptr;    ///< [num_local_experts + 1] first row of each group; token_major: null
  const std::int32_t* expert_dropped = nullptr;  ///< [num_local_experts]
};

/// A prepared routing: which row goes where. A reference: copies stand for the same routing. Several can be alive at
/// once, up to max_handles of the dispatcher; the storage is used again when the last copy, and the last Received that
/// came of it, are gone. Must not outlive its dispatcher.
class EPISTLE_API Handle {
 public:
  Handle() noexcept;
  ~Handle();
  Handle(const Handle&) noexcept;
  Handle& operator=(const Handle&) noexcept;
  Handle(Handle&&) noexcept;
  Handle& operator=(Handle&&) noexcept;

  [[nodiscard]] bool valid() const noexcept { return state_ != nullptr; }

  /// What will be received. Never waits.
  [[nodiscard]] const RowDescription& description() const;
  /// The counts, or null while a device still computes them. Never waits. Throws what prepare has found (see
  /// Dispatcher).
  [[nodiscard]] const RoutingStats* try_stats() const;
  /// Waits for them on the host; returns at once under exact sizing.
  [[nodiscard]] const RoutingStats& wait_stats() const;
  /// RowDescription::expert_counts on the host, waited for as wait_stats() does. On a GPU that is no wait for what else
  /// is on the stream, such as the rows of a dispatch.
  [[nodiscard]] std::vector<std::int32_t> read_expert_counts() const;
  /// CUDA: the ids of this rank's tokens as prepare has read them, in device memory that lives as long as the handle
  /// and is filled when the stream gets there; slots where experts are placed. Host: without data, as nobody keeps
  /// them.
  [[nodiscard]] IdsView routed_ids() const;

 private:
  friend struct CallAccess;
  explicit Handle(std::shared_ptr<HandleState> state) noexcept;
  std::shared_ptr<HandleState> state_;
};

/// Received rows, and where the experts may write their outputs: a lease on a buffer of the dispatcher. Copies share
/// it. While any is alive no other call writes there; a dispatcher has `num_buffers` to give, and a call that needs one
/// more is refused. On CUDA the buffer is free for the calls that follow on the host: work on other streams that still
/// reads it is the caller's to order. A Received that was captured into a graph should live as long as the graph.
class EPISTLE_API Received {
 public:
  Received() noexcept;
  ~Received();
  Received(const Received&) noexcept;
  Received& operator=(const Received&) noexcept;
  Received(Received&&) noexcept;
  Received& operator=(Received&&) noexcept;

  [[nodiscard]] bool valid() const noexcept { return buffer_ != nullptr; }

  /// [num_rows, hidden] of the input type, or of fp8 where rows are quantised on their way; padding rows are zero (see
  /// zero_padding).
  [[nodiscard]] Rows rows() const;
  /// Their scales, row by row unless the wire says otherwise (see Fp8Blocks); without data where the payload has none.
  /// Zero at padding likewise.
  [[nodiscard]] ScalesView scales() const;
  /// Where expert outputs [num_rows, expert_output_hidden] may be written to save combine a copy.
  [[nodiscard]] Rows expert_outputs() const;
  /// Flags for kernels that begin before all rows are there, or tell combine which outputs are done. Throws
  /// kUnsupported where nobody raises any: see CudaOptions::row_flags.
  [[nodiscard]] device::RowFlags row_flags() const;

  [[nodiscard]] const RowDescription& description() const;
  [[nodiscard]] std::int64_t num_rows() const { return description().num_rows; }
  [[nodiscard]] const std::int32_t* expert_begin() const { return description().expert_begin; }
  [[nodiscard]] const std::int32_t* expert_counts() const { return description().expert_counts; }

  /// The routing that these rows came by.
  [[nodiscard]] Handle handle() const noexcept;
  /// Gives the lease back before the object goes.
  void release() noexcept;

 private:
  friend struct CallAccess;
  Received(std::shared_ptr<HandleState> state, std::shared_ptr<RowBuffer> buffer, bool is_gradient) noexcept;
  std::shared_ptr<HandleState> state_;
  std::shared_ptr<RowBuffer> buffer_;
  bool is_gradient_ = false;  ///< of combine_backward: rows() are gradients, and lie where expert outputs do
};

/// A call whose send half was made and whose receive half is still to come. It must come: other ranks wait for it.
class EPISTLE_API Pending {
 public:
  Pending() noexcept;
  ~Pending();
  Pending(const Pending&) = delete;
  Pending& operator=(const Pending&) = delete;
  Pending(Pending&&) noexcept;
  Pending& operator=(Pending&&) noexcept;

  [[nodiscard]] bool valid() const noexcept { return state_ != nullptr; }

  /// Of a dispatch: where its rows will lie, for who has to say so before they are there; filled by the receive half.
  /// Throws kHandleMismatch where that is not known yet: on the host, where the routing is on its way with the rows
  /// (low_latency, ids in place of a handle); and where it is of another call.
  [[nodiscard]] Received received() const;

 private:
  friend struct CallAccess;
  std::shared_ptr<HandleState> state_;
  std::shared_ptr<RowBuffer> buffer_;
  std::uint64_t number_ = 0;  ///< of the send half
};

}  // namespace epistle
