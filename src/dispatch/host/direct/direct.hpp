// `direct`: every sender writes each row once per (token, rank) straight to its final place in the receiver's memory.
// In expert layouts the receiver duplicates it for its other local experts. On the way back every rank reads the expert
// outputs of its tokens where they lie and sums them: one pass, no buffer in between.
#pragma once

#include "dispatch/host/engine/host_dispatcher.hpp"

namespace epistle::host {

class DirectDispatcher final : public HostDispatcher {
 public:
  static constexpr std::string_view kName = "direct";

  DirectDispatcher(Group& group, const DispatcherConfig& config) : HostDispatcher(group, config, Transport::kDirect) {}

  [[nodiscard]] std::string_view name() const noexcept override { return kName; }

 protected:
  void plan_transport(HandleState& /*handle*/) override {}
  void send_rows(const MoveJob& job) override;
  void receive_rows(const MoveJob& job) override;
  void send_sums(const SumRequest& /*request*/) override {}
  void receive_sums(const SumRequest& request) override;
};

}  // namespace epistle::host
