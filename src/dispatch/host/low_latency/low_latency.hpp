// `low_latency`: every call takes one step, in which a rank says what it does and sends. Rows of a handle go straight
// to their final places, as in `direct`; rows whose routing comes with them are laid out at a fixed place of their
// rank, and every rank fetches its own when all have sent. On the way back expert outputs are summed where they lie.
// The protocol: docs/low_latency.md.
#pragma once

#include "dispatch/host/direct/direct.hpp"
#include "dispatch/host/engine/host_context.hpp"
#include "dispatch/host/engine/published_places.hpp"
#include "dispatch/host/engine/row_mover.hpp"

namespace epistle::host {

class LowLatencyMover final : public RowMover {
 public:
  explicit LowLatencyMover(HostContext& context) : context_(context), direct_(context), places_(context.layout()) {}

  [[nodiscard]] bool sends_unagreed() const noexcept override { return true; }
  void send_rows(const MoveJob& job) override { job.is_published ? publish(job) : direct_.send_rows(job); }
  void receive_rows(const MoveJob& job) override { job.is_published ? fetch(job) : direct_.receive_rows(job); }
  void send_sums(const SumRequest& request) override { direct_.send_sums(request); }
  void receive_sums(const SumRequest& request) override { direct_.receive_sums(request); }
  void apply_row_weights(const RowWeightJob& job) override { direct_.apply_row_weights(job); }

 private:
  void publish(const MoveJob& job);
  void fetch(const MoveJob& job);
  /// Whether rows that stay on this rank are laid out as well: otherwise they are where the caller has them.
  [[nodiscard]] static bool publishes_own(const MoveJob& job) noexcept { return job.quantises; }
  [[nodiscard]] bool is_published(const MoveJob& job, std::int64_t token) const noexcept;

  HostContext& context_;
  DirectMover direct_;
  PublishedPlaces places_;
};

}  // namespace epistle::host
