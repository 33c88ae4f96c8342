// `low_latency`: for the few tokens of a decode step, where waiting costs more than copying. A rank lays its rows out
// at a fixed place of its own, with the routing, and says in the same step which call it makes; when all have, every
// rank takes its rows straight to their final places. On the way back expert outputs are summed where they lie. The
// protocol: docs/low_latency.md.
#pragma once

#include "dispatch/host/engine/host_context.hpp"
#include "dispatch/host/engine/published_places.hpp"
#include "dispatch/host/engine/row_mover.hpp"
#include "dispatch/host/engine/sums.hpp"

namespace epistle::host {

class LowLatencyMover final : public RowMover {
 public:
  explicit LowLatencyMover(HostContext& context) : context_(context), places_(context.layout()) {}

  [[nodiscard]] bool sends_unagreed() const noexcept override { return true; }
  void send_rows(const MoveJob& job) override;
  void receive_rows(const MoveJob& job) override;
  void send_sums(const SumRequest& /*request*/) override {}
  void receive_sums(const SumRequest& request) override { sum_rows_in_place(context_, request); }
  void apply_row_weights(const RowWeightJob& job) override { host::apply_row_weights(context_, job); }

 private:
  [[nodiscard]] bool leaves_this_rank(const HostHandle& handle, std::int64_t token) const noexcept;

  HostContext& context_;
  PublishedPlaces places_;
};

}  // namespace epistle::host
