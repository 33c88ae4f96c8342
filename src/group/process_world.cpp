#include "group/process_world.hpp"

#include <cerrno>
#include <cstring>
#include <numeric>
#include <utility>

#include <fcntl.h>
#include <unistd.h>

#include <fmt/format.h>

#include "epistle/error.hpp"

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

}  // namespace

HostRanks all_ranks_here(int num_ranks) {
  HostRanks ranks{.num_ranks = num_ranks, .here = std::vector<int>(static_cast<std::size_t>(num_ranks))};
  std::iota(ranks.here.begin(), ranks.here.end(), 0);
  return ranks;
}

ProcessWorld::ProcessWorld(const std::string& job, int rank, HostRanks ranks, std::chrono::milliseconds timeout)
    : ranks_(std::move(ranks)), rendezvous_(meet(job, rank, ranks_, timeout)) {}

Rendezvous ProcessWorld::meet(const std::string& job, int rank, const HostRanks& ranks,
                              std::chrono::milliseconds timeout) {
  try {
    return {job, ranks.place_of(rank), ranks.count(), timeout};
  } catch (const Error& error) {
    throw renumbered(ranks, error);
  }
}

Error ProcessWorld::renumbered(const HostRanks& ranks, const Error& error) {
  if (!ranks.place) return error;
  const auto rank_at = [&ranks](int place) {
    return place >= 0 && place < ranks.count() ? ranks.here[static_cast<std::size_t>(place)] : place;
  };
  Error::Context context = error.context();
  if (context.rank >= 0) context.rank = ranks.own;
  context.peer_rank = rank_at(context.peer_rank);
  const std::string hint =
      context.peer_rank >= 0 ? fmt::format("rank {} (ranks of this host are counted from 0 here): ", context.peer_rank)
                             : std::string();
  return {error.code(), hint + std::string(error.message()), context};
}

void ProcessWorld::found(int rank, std::int64_t reserved_bytes, std::chrono::milliseconds timeout,
                         const std::function<void(SymmetricRegion)>& attach) {
  // A piece for every rank of the group: those of other hosts are mirrored here.
  const auto adopt = [&](UniqueFd file) {
    first_region_ = {
        std::make_shared<RegionMapping>(std::move(file), RegionPieces{ranks_.num_ranks, nullptr}, reserved_bytes),
        rank};
    hold_life_lock(first_region_.fd(), rank);
    attach(first_region_);
  };
  in_group_numbers([&] {
    rendezvous_.found([&] { return create_shared_file(region_file_bytes(ranks_.num_ranks, reserved_bytes)); }, adopt,
                      timeout);
  });
}

SymmetricRegion ProcessWorld::create_region(int rank, int /*region_idx*/, std::int64_t reserved_bytes,
                                            const Watch& watch) {
  const bool leads = rank == ranks_.leader();
  UniqueFd own;
  const Complaint complaint = attempt([&] {
    const std::int64_t file_bytes = region_file_bytes(ranks_.count(), reserved_bytes);
    if (leads) own = create_shared_file(file_bytes);
  });
  const auto is_hopeless = [&](int place) { return watch.is_hopeless(ranks_.here[static_cast<std::size_t>(place)]); };
  UniqueFd file = in_group_numbers(
      [&] { return rendezvous_.broadcast(own, leads ? complaint : std::nullopt, watch.deadline, is_hopeless); });
  if (complaint) throw Error(*complaint);
  return map_region_file(rank, std::move(file), reserved_bytes);
}

std::vector<UniqueFd> ProcessWorld::exchange_fds(const UniqueFd& own, const Watch& watch) {
  const auto is_hopeless = [&](int place) { return watch.is_hopeless(ranks_.here[static_cast<std::size_t>(place)]); };
  std::vector<UniqueFd> here = in_group_numbers([&] { return rendezvous_.exchange(own, watch.deadline, is_hopeless); });
  std::vector<UniqueFd> files(static_cast<std::size_t>(ranks_.num_ranks));
  for (std::size_t place = 0; place < here.size(); ++place) {
    files[static_cast<std::size_t>(ranks_.here[place])] = std::move(here[place]);
  }
  return files;
}

UniqueFd ProcessWorld::create_region_file(std::int64_t reserved_bytes) const {
  return create_shared_file(region_file_bytes(ranks_.count(), reserved_bytes));
}

SymmetricRegion ProcessWorld::map_region_file(int rank, UniqueFd file, std::int64_t reserved_bytes) const {
  return {std::make_shared<RegionMapping>(std::move(file), RegionPieces{ranks_.count(), ranks_.place}, reserved_bytes),
          rank};
}

ProcessId ProcessWorld::own_process() const noexcept { return own_process_id(); }

bool ProcessWorld::is_alive(int rank, const ProcessId& process) const noexcept {
  // Of ranks of other hosts the uplink tells.
  if (!ranks_.has(rank)) return true;
  flock lock = life_lock_of(rank);
  if (::fcntl(first_region_.fd(), F_GETLK, &lock) != 0 || lock.l_type != F_UNLCK) return true;
  // A process loses its lock as well when it opens and closes the file again (through /proc/self/fd), and a process
  // does not see its own.
  return is_running(process);
}

}  // namespace epistle
