// `reference`: every rank publishes its whole input, and every rank picks out and sums what is its own, one element at
// a time, as the oracle does. For tests and for debugging; never fast.
#pragma once

#include "dispatch/host/engine/collective_dispatcher.hpp"

namespace epistle::reference {

class ReferenceDispatcher final : public CollectiveDispatcher {
 public:
  static constexpr std::string_view kName = "reference";

  ReferenceDispatcher(Group& group, const DispatcherConfig& config)
      : CollectiveDispatcher(group, config, Transport::kReference) {}

  [[nodiscard]] std::string_view name() const noexcept override { return kName; }

 protected:
  void plan_transport(HandleState& /*handle*/) override {}
  void send_rows(const MoveJob& job) override;
  void receive_rows(const MoveJob& job) override;
  void send_sums(const SumRequest& /*request*/) override {}
  void receive_sums(const SumRequest& request) override;
  void copy_rows(const std::byte* source, std::byte* target, std::int64_t num_rows) override;
  void apply_row_weights(const HandleState& handle, const std::byte* saved_rows, std::byte* grad_rows,
                         float* grad_weights) override;
};

}  // namespace epistle::reference
