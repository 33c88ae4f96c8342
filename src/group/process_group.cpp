// Groups whose ranks are processes of one host.
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <fmt/format.h>

#include "epistle/error.hpp"
#include "epistle/group.hpp"

#include "core/settings.hpp"
#include "group/group_impl.hpp"
#include "group/limits.hpp"
#include "group/rendezvous.hpp"

namespace epistle {
namespace {

UniqueFd open_own_pidfd() {
  UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, ::getpid(), 0)));
  if (!pidfd.valid()) {
    throw Error(ErrorCode::kUnsupported,
                fmt::format("process groups need pidfd_open (Linux 5.3 or later): {}", std::strerror(errno)));
  }
  return pidfd;
}

class ProcessWorld final : public World {
 public:
  ProcessWorld(const LaunchInfo& info, std::chrono::milliseconds timeout)
      : rendezvous_(info.job, info.rank, info.num_ranks, timeout),
        // The descriptors work across PID namespaces and, unlike a PID, never come to mean another process.
        pidfds_(rendezvous_.exchange(open_own_pidfd(), timeout)) {}

  [[nodiscard]] GroupKind kind() const noexcept override { return GroupKind::kProcesses; }

  [[nodiscard]] SymmetricRegion create_region(int rank, int /*region_idx*/, std::int64_t reserved_bytes,
                                              std::chrono::milliseconds timeout) override {
    std::vector<UniqueFd> files = rendezvous_.exchange(create_shared_file(reserved_bytes), timeout);
    std::vector<bool> keep_fd(files.size(), false);
    keep_fd[static_cast<std::size_t>(rank)] = true;
    return {std::make_shared<RegionMapping>(std::move(files), keep_fd, reserved_bytes), rank};
  }

  [[nodiscard]] std::vector<UniqueFd> exchange_fds(const UniqueFd& own, std::chrono::milliseconds timeout) override {
    return rendezvous_.exchange(own, timeout);
  }

  [[nodiscard]] bool is_alive(int rank) const noexcept override {
    pollfd entry{pidfds_[static_cast<std::size_t>(rank)].get(), POLLIN, 0};
    return ::poll(&entry, 1, 0) <= 0;  // readable once the process has ended
  }

 private:
  Rendezvous rendezvous_;
  std::vector<UniqueFd> pidfds_;
};

}  // namespace

Group join_process_group(const GroupOptions& options) { return join_process_group(read_launch_info(), options); }

Group join_process_group(const LaunchInfo& info, const GroupOptions& options) {
  check_num_ranks(info.num_ranks);
  if (info.rank < 0 || info.rank >= info.num_ranks) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("rank {} is not in [0, {}), the ranks of this job", info.rank, info.num_ranks));
  }
  const std::chrono::milliseconds timeout =
      options.timeout.count() > 0 ? options.timeout : std::chrono::milliseconds(settings().timeout_ms());
  auto world = std::make_shared<ProcessWorld>(info, timeout);
  return Group(std::make_shared<GroupImpl>(std::move(world), info.rank, info.num_ranks, timeout));
}

}  // namespace epistle
