// Groups whose ranks are processes of one host.
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <unistd.h>

#include <fmt/format.h>

#include "epistle/error.hpp"
#include "epistle/group.hpp"

#include "group/group_impl.hpp"
#include "group/limits.hpp"
#include "group/rendezvous.hpp"

namespace epistle {
namespace {

/// Every rank holds a lock on the byte of its number in the group's first file. The kernel lets go of it when the
/// process ends, however it ends, and children do not inherit it. One descriptor serves for all ranks; a descriptor for
/// each process would make as many as there are pairs.
flock life_lock_of(int rank) noexcept {
  flock lock{};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = rank;
  lock.l_len = 1;
  return lock;
}

void hold_life_lock(int file, int rank) {
  flock lock = life_lock_of(rank);
  if (retry_interrupted([&] { return ::fcntl(file, F_SETLK, &lock); }) == 0) return;
  throw Error(ErrorCode::kSystem, fmt::format("locking shared memory failed: {}", std::strerror(errno)));
}

class ProcessWorld final : public World {
 public:
  ProcessWorld(const LaunchInfo& info, std::chrono::milliseconds timeout)
      : num_ranks_(info.num_ranks), rendezvous_(info.job, info.rank, info.num_ranks, timeout) {}

  [[nodiscard]] GroupKind kind() const noexcept override { return GroupKind::kProcesses; }

  void found(int rank, std::int64_t reserved_bytes, std::chrono::milliseconds timeout,
             const std::function<void(SymmetricRegion)>& attach) override {
    rendezvous_.found(
        [&] { return create_shared_file(region_file_bytes(num_ranks_, reserved_bytes)); },
        [&](UniqueFd file) {
          first_region_ = {std::make_shared<RegionMapping>(std::move(file), num_ranks_, reserved_bytes), rank};
          hold_life_lock(first_region_.fd(), rank);
          attach(first_region_);
        },
        timeout);
  }

  [[nodiscard]] SymmetricRegion create_region(int rank, int /*region_idx*/, std::int64_t reserved_bytes,
                                              const Watch& watch) override {
    UniqueFd own;
    const Complaint complaint = attempt([&] {
      const std::int64_t file_bytes = region_file_bytes(num_ranks_, reserved_bytes);
      if (rank == 0) own = create_shared_file(file_bytes);
    });
    UniqueFd file = rendezvous_.broadcast(own, rank == 0 ? complaint : std::nullopt, watch.deadline, watch.is_hopeless);
    if (complaint) throw Error(*complaint);
    return {std::make_shared<RegionMapping>(std::move(file), num_ranks_, reserved_bytes), rank};
  }

  [[nodiscard]] std::vector<UniqueFd> exchange_fds(const UniqueFd& own, const Watch& watch) override {
    return rendezvous_.exchange(own, watch.deadline, watch.is_hopeless);
  }

  [[nodiscard]] ProcessId own_process() const noexcept override { return own_process_id(); }

  [[nodiscard]] bool is_alive(int rank, const ProcessId& process) const noexcept override {
    flock lock = life_lock_of(rank);
    if (::fcntl(first_region_.fd(), F_GETLK, &lock) != 0 || lock.l_type != F_UNLCK) return true;
    // A process loses its lock as well when it opens and closes the file again (through /proc/self/fd), and a process
    // does not see its own.
    return is_running(process);
  }

 private:
  int num_ranks_;
  Rendezvous rendezvous_;
  SymmetricRegion first_region_;
};

}  // namespace

Group join_process_group(const GroupOptions& options) { return join_process_group(read_launch_info(), options); }

Group join_process_group(const LaunchInfo& info, const GroupOptions& options) {
  check_num_ranks(info.num_ranks);
  if (info.rank < 0 || info.rank >= info.num_ranks) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("rank {} is not in [0, {}), the ranks of this job", info.rank, info.num_ranks));
  }
  const std::chrono::milliseconds timeout = resolve_timeout(options);
  auto world = std::make_shared<ProcessWorld>(info, timeout);
  auto impl = std::make_shared<GroupImpl>(std::move(world), info.rank, info.num_ranks, timeout);
  impl->form_domains(options.domain_size);
  return Group(std::move(impl));
}

}  // namespace epistle
