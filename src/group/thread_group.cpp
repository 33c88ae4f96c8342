// Groups whose ranks are threads of one process. A region is mapped once and shared by all ranks, so every rank sees
// the same addresses (and the thread sanitizer sees every access).
#include <exception>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "epistle/error.hpp"
#include "epistle/group.hpp"

#include "group/group_impl.hpp"
#include "group/limits.hpp"

namespace epistle {
namespace {

class ThreadWorld final : public World {
 public:
  explicit ThreadWorld(int num_ranks) : num_ranks_(num_ranks) {}

  [[nodiscard]] GroupKind kind() const noexcept override { return GroupKind::kThreads; }

  // The ranks of a thread group are made by one thread, one after the other.
  void found(int rank, std::int64_t reserved_bytes, std::chrono::milliseconds /*timeout*/,
             const std::function<void(SymmetricRegion)>& attach) override {
    if (!first_region_) first_region_ = map_region(reserved_bytes);
    attach({first_region_, rank});
  }

  // No rank has to wait: whoever comes first maps the region for all, or finds that it cannot be had.
  [[nodiscard]] SymmetricRegion create_region(int rank, int region_idx, std::int64_t reserved_bytes,
                                              const Watch& watch) override {
    const std::lock_guard lock(mutex_);
    const auto idx = static_cast<std::size_t>(region_idx);
    if (regions_.size() <= idx) regions_.resize(idx + 1);
    PendingRegion& region = regions_[idx];
    if (region.num_joined == 0) region.complaint = attempt([&] { region.mapping = map_region(reserved_bytes); });
    SymmetricRegion view(region.mapping, rank);
    // The last rank to join leaves the mapping to the views, so that it goes when they do.
    if (++region.num_joined == watch.num_members) region.mapping.reset();
    if (region.complaint) throw Error(*region.complaint);
    return view;
  }

  [[nodiscard]] std::vector<UniqueFd> exchange_fds(const UniqueFd& /*own*/, const Watch& /*watch*/) override {
    throw Error(ErrorCode::kUnsupported,
                "descriptors are exchanged between processes; the ranks of this group are "
                "threads of one, which share them");
  }

  [[nodiscard]] ProcessId own_process() const noexcept override { return {}; }
  // A thread cannot die alone: a rank that leaves says so (GroupImpl::depart).
  [[nodiscard]] bool is_alive(int /*rank*/, const ProcessId& /*process*/) const noexcept override { return true; }

 private:
  struct PendingRegion {
    std::shared_ptr<RegionMapping> mapping;
    Complaint complaint;
    int num_joined = 0;
  };

  [[nodiscard]] std::shared_ptr<RegionMapping> map_region(std::int64_t reserved_bytes) const {
    return std::make_shared<RegionMapping>(create_shared_file(region_file_bytes(num_ranks_, reserved_bytes)),
                                           RegionPieces{num_ranks_, nullptr}, reserved_bytes);
  }

  int num_ranks_;
  std::shared_ptr<RegionMapping> first_region_;
  std::mutex mutex_;
  std::vector<PendingRegion> regions_;
};

/// True for errors that only report what happened to another rank.
bool is_secondary(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const Error& e) {
    return e.code() == ErrorCode::kPeerLost || e.code() == ErrorCode::kPeerRejected ||
           e.code() == ErrorCode::kTimeout || e.code() == ErrorCode::kAborted || e.code() == ErrorCode::kMaskedOut;
  } catch (...) {
    return false;
  }
}

}  // namespace

std::vector<Group> make_thread_groups(int num_ranks, const GroupOptions& options) {
  check_num_ranks(num_ranks);
  const std::chrono::milliseconds timeout = resolve_timeout(options);
  auto world = std::make_shared<ThreadWorld>(num_ranks);
  std::vector<Group> groups;
  groups.reserve(static_cast<std::size_t>(num_ranks));
  for (int rank = 0; rank < num_ranks; ++rank) {
    auto impl = std::make_shared<GroupImpl>(world, rank, num_ranks, timeout);
    impl->form_domains(options.domain_size);
    groups.emplace_back(std::move(impl));
  }
  return groups;
}

void run_thread_ranks(int num_ranks, const std::function<void(Group&)>& body, const GroupOptions& options) {
  std::vector<Group> groups = make_thread_groups(num_ranks, options);
  std::vector<std::exception_ptr> errors(groups.size());
  std::mutex order_mutex;
  std::vector<std::size_t> failed_order;
  std::vector<std::thread> threads;
  threads.reserve(groups.size());
  const auto play = [&](std::size_t rank) {
    try {
      body(groups[rank]);
    } catch (...) {
      errors[rank] = std::current_exception();
      const std::lock_guard lock(order_mutex);
      failed_order.push_back(rank);
    }
    groups[rank].impl().depart();
  };
  std::optional<Error> not_started;
  for (std::size_t rank = 0; rank < groups.size(); ++rank) {
    try {
      if (!not_started) threads.emplace_back(play, rank);
    } catch (const std::system_error& error) {
      not_started =
          Error(ErrorCode::kSystem, fmt::format("the thread of rank {} of {} cannot be started: {}; take fewer "
                                                "ranks, or raise the limit on processes (ulimit -u)",
                                                rank, num_ranks, error.what()));
    }
    // The ranks that run must not wait for those that never will.
    if (not_started) groups[rank].impl().depart();
  }
  for (std::thread& thread : threads) thread.join();
  if (not_started) throw Error(*not_started);
  for (const std::size_t rank : failed_order) {
    if (!is_secondary(errors[rank])) std::rethrow_exception(errors[rank]);
  }
  if (!failed_order.empty()) std::rethrow_exception(errors[failed_order.front()]);
}

}  // namespace epistle
