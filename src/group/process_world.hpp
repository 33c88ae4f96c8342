// Ranks that are processes of one host: all ranks of a group, or those of one of its hosts.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "group/rendezvous.hpp"
#include "group/world.hpp"

namespace epistle {

/// The ranks of a group that are on one host, in ascending order. The first leads.
struct HostRanks {
  int num_ranks = 1;  ///< of the group
  std::vector<int> here;
  /// By rank of the group: its place among `here`, -1 elsewhere. Null where all ranks are here.
  std::shared_ptr<const std::vector<int>> place = nullptr;
  int own = -1;  ///< this process's, where `place` is given

  [[nodiscard]] int place_of(int rank) const noexcept {
    return place ? (*place)[static_cast<std::size_t>(rank)] : rank;
  }
  [[nodiscard]] bool has(int rank) const noexcept { return place_of(rank) >= 0; }
  [[nodiscard]] int leader() const noexcept { return here.front(); }
  [[nodiscard]] int count() const noexcept { return static_cast<int>(here.size()); }
};

[[nodiscard]] HostRanks all_ranks_here(int num_ranks);

class ProcessWorld : public World {
 public:
  /// `job` names the meeting of this host's ranks.
  ProcessWorld(const std::string& job, int rank, HostRanks ranks, std::chrono::milliseconds timeout);

  [[nodiscard]] GroupKind kind() const noexcept override { return GroupKind::kProcesses; }
  void found(int rank, std::int64_t reserved_bytes, std::chrono::milliseconds timeout,
             const std::function<void(SymmetricRegion)>& attach) override;
  [[nodiscard]] SymmetricRegion create_region(int rank, int region_idx, std::int64_t reserved_bytes,
                                              const Watch& watch) override;
  [[nodiscard]] std::vector<UniqueFd> exchange_fds(const UniqueFd& own, const Watch& watch) override;
  [[nodiscard]] UniqueFd create_region_file(std::int64_t reserved_bytes) const override;
  [[nodiscard]] SymmetricRegion map_region_file(int rank, UniqueFd file, std::int64_t reserved_bytes) const override;
  [[nodiscard]] ProcessId own_process() const noexcept override;
  [[nodiscard]] bool is_alive(int rank, const ProcessId& process) const noexcept override;

 protected:
  [[nodiscard]] const HostRanks& ranks() const noexcept { return ranks_; }
  [[nodiscard]] Rendezvous& rendezvous() noexcept { return rendezvous_; }
  /// For what the rendezvous does, which counts the ranks of this host from 0: errors name ranks of the group.
  template <typename Work>
  decltype(auto) in_group_numbers(Work&& work) const {
    try {
      return std::forward<Work>(work)();
    } catch (const Error& error) {
      throw renumbered(ranks_, error);
    }
  }

 private:
  [[nodiscard]] static Error renumbered(const HostRanks& ranks, const Error& error);
  [[nodiscard]] static Rendezvous meet(const std::string& job, int rank, const HostRanks& ranks,
                                       std::chrono::milliseconds timeout);

  HostRanks ranks_;
  Rendezvous rendezvous_;
  SymmetricRegion first_region_;
};

}  // namespace epistle
