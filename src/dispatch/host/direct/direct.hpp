// `direct`: every sender writes each row once per (token, rank) straight to its final place in the receiver's memory.
// In expert layouts the receiver duplicates it for its other local experts. On the way back every rank reads the expert
// outputs of its tokens where they lie and sums them: one pass, no buffer in between.
#pragma once

#include "dispatch/host/engine/host_context.hpp"
#include "dispatch/host/engine/row_mover.hpp"
#include "dispatch/host/engine/sums.hpp"

namespace epistle::host {

class DirectMover final : public RowMover {
 public:
  explicit DirectMover(HostContext& context) : context_(context) {}

  void send_rows(const MoveJob& job) override;
  void receive_rows(const MoveJob& job) override;
  void send_sums(const SumRequest& /*request*/) override {}
  void receive_sums(const SumRequest& request) override { sum_rows_in_place(context_, request); }
  void apply_row_weights(const RowWeightJob& job) override { host::apply_row_weights(context_, job); }

 private:
  HostContext& context_;
};

}  // namespace epistle::host
