// How the pieces of a region come together, and how ranks are watched: one implementation per kind of group.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "epistle/error.hpp"
#include "epistle/types.hpp"

#include "group/fd_channel.hpp"
#include "group/process_id.hpp"
#include "group/shared_memory.hpp"

namespace epistle {

/// What a rank that waits for another outside of the group's steps has to keep in mind.
struct Watch {
  Deadline deadline;
  int num_members = 1;  ///< ranks that take part
  /// True when `peer_rank` will send nothing any more: the group has failed, or that rank is lost or is past this step.
  std::function<bool(int peer_rank)> is_hopeless;
};

class World {
 public:
  World() = default;
  virtual ~World() = default;
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  [[nodiscard]] virtual GroupKind kind() const noexcept = 0;

  /// Collective, the first step of a group: gives every rank its view of the region that everything else is agreed on
  /// in. Rank 0 returns when all have attached to it, or throws why not all have; the others return when they have.
  virtual void found(int rank, std::int64_t reserved_bytes, std::chrono::milliseconds timeout,
                     const std::function<void(SymmetricRegion)>& attach) = 0;

  // ---- Steps whose outcome the ranks agree on afterwards. What one rank throws, it throws alone. --------------------

  /// `rank`'s view of the `region_idx`-th region.
  [[nodiscard]] virtual SymmetricRegion create_region(int rank, int region_idx, std::int64_t reserved_bytes,
                                                      const Watch& watch) = 0;
  /// A copy of every rank's descriptor, in rank order. Throws kUnsupported where the ranks share one process, and have
  /// no need of it.
  [[nodiscard]] virtual std::vector<UniqueFd> exchange_fds(const UniqueFd& own, const Watch& watch) = 0;

  // Where ranks are masked out, descriptors are not handed out any more but fetched, by ranks of one host from each
  // other.

  /// The file of a region; for one of the ranks that will share it.
  [[nodiscard]] virtual UniqueFd create_region_file(std::int64_t /*reserved_bytes*/) const { throw_no_files(); }
  /// `rank`'s view of the region in such a file.
  [[nodiscard]] virtual SymmetricRegion map_region_file(int /*rank*/, UniqueFd /*file*/,
                                                        std::int64_t /*reserved_bytes*/) const {
    throw_no_files();
  }

  // ---- Hosts: one, unless a world says otherwise. -------------------------------------------------------------------

  [[nodiscard]] virtual int num_hosts() const noexcept { return 1; }
  /// Hosts are numbered by the lowest of their ranks.
  [[nodiscard]] virtual int host_of(int /*rank*/) const noexcept { return 0; }
  /// The rank that founds the group on the host of `rank` and speaks for that host.
  [[nodiscard]] virtual int leader_of(int /*rank*/) const noexcept { return 0; }
  /// Of this host, towards the others; empty where there are none.
  [[nodiscard]] virtual std::string host_address() const { return {}; }
  /// This rank has arrived in a step, left, seen a failure or proposed a mask: other hosts must hear of it. From any
  /// thread.
  virtual void notify() noexcept {}

  [[nodiscard]] virtual ProcessId own_process() const noexcept = 0;
  /// False once `rank`, which has attached as `process`, can never arrive again because its process has ended.
  [[nodiscard]] virtual bool is_alive(int rank, const ProcessId& process) const noexcept = 0;

  /// A number that ranks have in common whose GPUs reach each other's memory: of one host, or of hosts in one NVLink
  /// fabric.
  [[nodiscard]] virtual int gpu_reach_of(int rank) const noexcept { return host_of(rank); }

 private:
  [[noreturn]] static void throw_no_files() {
    throw Error(ErrorCode::kUnsupported, "ranks of one process share its regions; there are no files of them to fetch");
  }
};

}  // namespace epistle
