// `reference`: every rank publishes its whole input, and every rank picks out and sums what is its own, one element at
// a time, as the oracle does. For tests and for debugging; never fast.
#pragma once

#include "dispatch/host/engine/host_context.hpp"
#include "dispatch/host/engine/row_mover.hpp"

namespace epistle::reference {

class ReferenceMover final : public host::RowMover {
 public:
  explicit ReferenceMover(host::HostContext& context) : context_(context) {}

  void send_rows(const host::MoveJob& job) override;
  void receive_rows(const host::MoveJob& job) override;
  void send_sums(const host::SumRequest& /*request*/) override {}
  void receive_sums(const host::SumRequest& request) override;
  void apply_row_weights(const host::RowWeightJob& job) override;

 private:
  host::HostContext& context_;
};

}  // namespace epistle::reference
