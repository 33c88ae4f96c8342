// Ranks that are processes of several hosts.
#pragma once

#include <memory>

#include "core/complaint.hpp"
#include "group/net/host_table.hpp"
#include "group/net/uplink.hpp"
#include "group/process_world.hpp"

namespace epistle {

class HostsWorld final : public ProcessWorld {
 public:
  /// Collective over the ranks of this host.
  /// Collective. What fails among the ranks of one host, all hosts are told of.
  [[nodiscard]] static std::shared_ptr<HostsWorld> meet(MetHosts met, int rank, std::chrono::milliseconds timeout);

  void found(int rank, std::int64_t reserved_bytes, std::chrono::milliseconds timeout,
             const std::function<void(SymmetricRegion)>& attach) override;

  [[nodiscard]] int num_hosts() const noexcept override { return table_.num_hosts(); }
  [[nodiscard]] int host_of(int rank) const noexcept override { return table_.host_of[static_cast<std::size_t>(rank)]; }
  [[nodiscard]] int gpu_reach_of(int rank) const noexcept override { return table_.gpu_reach_of(rank); }
  [[nodiscard]] int leader_of(int rank) const noexcept override { return table_.leader_of(rank); }
  [[nodiscard]] std::string host_address() const override;
  void notify() noexcept override;

 private:
  /// Takes what listens to the other hosts from `met` when it has succeeded.
  HostsWorld(MetHosts& met, int rank, std::chrono::milliseconds timeout);

  HostTable table_;
  UniqueFd listener_;
  int rank_;
  UniqueFd wake_;           ///< an event: the uplink of this host has something to tell
  Complaint lack_of_wake_;  ///< why this rank does not have it
  std::unique_ptr<Uplink> uplink_;
};

}  // namespace epistle
