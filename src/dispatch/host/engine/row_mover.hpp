// How rows travel: what a dispatcher of the host device brings.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dispatch/host/engine/host_handle.hpp"
#include "group/call_post.hpp"
#include "layout/buffer_section.hpp"

namespace epistle::host {

/// The scales of the rows of a move, where a caller holds them.
struct ScaleSource {
  const std::byte* data = nullptr;
  std::int64_t row_stride = 0;     ///< bytes
  std::int64_t column_stride = 0;  ///< bytes; equal to element_bytes where a row's lie one behind the other
  std::int64_t element_bytes = 0;
};

/// Rows on their way from tokens to experts.
struct MoveJob {
  const HostHandle* handle = nullptr;
  const std::byte* rows = nullptr;  ///< [num_tokens], row_stride bytes from one to the next
  std::int64_t row_stride = 0;
  ScaleSource scales;
  bool quantises = false;      ///< rows of bf16 become fp8 on their way: see WireRows
  std::int64_t row_bytes = 0;  ///< as they travel
  std::int64_t scale_bytes = 0;
  BufferSection target = BufferSection::kReceiveRows;
  bool is_published = false;   ///< rows are laid out for the others to fetch: their places were not known
  std::uint64_t exchange = 0;  ///< in which they are
  Phase phase = Phase::kDispatch;
  Call forwarded;  ///< the step in which all say that they have passed rows on: movers that cross domains
};

/// Rows on their way back, in the combine section of every rank.
struct SumRequest {
  const HostHandle* handle = nullptr;
  bool weighted = false;
  std::byte* out = nullptr;  ///< [num_tokens], out_stride bytes from one to the next
  std::int64_t out_stride = 0;
  /// Movers that use links: gradients of the weights go back with the rows, to grad_probs where it is not null.
  bool brings_gradients = false;
  float* grad_probs = nullptr;  ///< [num_tokens, top_k]
};

/// Gradient rows of this rank, in place, and what they say of the weights.
struct RowWeightJob {
  const HostHandle* handle = nullptr;
  const std::byte* saved_rows = nullptr;  ///< null: no gradients of the weights
  std::int64_t saved_stride = 0;
  std::byte* grad_rows = nullptr;
  float* grad_weights = nullptr;
};

/// Calls it once per step of a call, when all ranks have agreed on that (but see sends_unagreed()). Sections are those
/// of the call's buffers.
class RowMover {
 public:
  virtual ~RowMover() = default;
  RowMover(const RowMover&) = delete;
  RowMover& operator=(const RowMover&) = delete;

  /// True where the ranks need not have agreed on a call before its rows are sent: nobody looks at them before all
  /// have. Then sending and agreeing are one step, and routing may travel with the rows.
  [[nodiscard]] virtual bool sends_unagreed() const noexcept { return false; }

  /// Bytes put on links to other domains so far.
  [[nodiscard]] virtual std::int64_t network_bytes() const noexcept { return 0; }

  /// The mask of the group has changed, and what the ranks share was made anew.
  virtual void renew() {}

  /// Movers that use links (see PlanRules): brings the records of all rows to where they belong, those that cross to
  /// this rank's domain once per (token, domain) by way of this rank. The handle's table is filled in, and all memory
  /// is there.
  virtual void exchange_records(HostHandle& handle) { static_cast<void>(handle); }
  /// Makes room in `handle` for what plan() puts there, when the counts are known.
  virtual void reserve(HostHandle& handle) { static_cast<void>(handle); }
  /// Fills in what the mover keeps per handle, when everything else in it is known. All ranks have agreed on the
  /// handle: it may not fail.
  virtual void plan(HostHandle& handle) { static_cast<void>(handle); }
  /// Puts this rank's rows on their way. Nobody else touches this rank's send and stage sections.
  virtual void send_rows(const MoveJob& job) = 0;
  /// All ranks have sent: completes this rank's output rows except padding.
  virtual void receive_rows(const MoveJob& job) = 0;
  /// All expert outputs of this rank are in its combine section; the other ranks may not be ready.
  virtual void send_sums(const SumRequest& request) = 0;
  /// All ranks have called send_sums: sums this rank's tokens.
  virtual void receive_sums(const SumRequest& request) = 0;
  /// Gradients of the weights (unless they are not asked for), then every gradient row times its weight.
  virtual void apply_row_weights(const RowWeightJob& job) = 0;

 protected:
  RowMover() = default;
};

}  // namespace epistle::host
