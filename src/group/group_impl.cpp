#include "group/group_impl.hpp"

#include <algorithm>
#include <cstring>
#include <new>
#include <thread>
#include <utility>

#include <fmt/format.h>

#include "core/settings.hpp"

namespace epistle {

using Clock = std::chrono::steady_clock;

namespace {

// Longest sleep between two looks at the peers: bounds how late the death of a peer is seen.
constexpr std::int64_t kSleepSliceUs = 10'000;
// A rank that shares its core with others must not keep it busy; one that has its own gains several microseconds per
// step by not sleeping.
constexpr std::chrono::microseconds kSpinWithOwnCore{100};
constexpr std::chrono::microseconds kSpinOnSharedCore{1};
constexpr int kSpinsPerClockRead = 64;
constexpr std::size_t kGatherSlotBytes = 4096;

constexpr std::uint32_t kRankActive = 1;
constexpr std::uint32_t kRankDeparted = 2;

constexpr int kFailureFieldBits = 16;
constexpr std::uint64_t kFailureFieldMask = 0xffff;

}  // namespace

struct GroupImpl::Failure {
  ErrorCode code = ErrorCode::kPeerLost;
  Phase phase = Phase::kNone;
  int peer_rank = -1;
  int reporter_rank = -1;

  [[nodiscard]] std::uint64_t pack() const noexcept {
    const auto field = [](int value, int idx) {
      return (static_cast<std::uint64_t>(value) & kFailureFieldMask) << (idx * kFailureFieldBits);
    };
    return field(static_cast<int>(code), 0) | field(static_cast<int>(phase), 1) | field(peer_rank, 2) |
           field(reporter_rank, 3);
  }
  [[nodiscard]] static Failure unpack(std::uint64_t packed) noexcept {
    const auto field = [packed](int idx) {
      return static_cast<int>((packed >> (idx * kFailureFieldBits)) & kFailureFieldMask);
    };
    return {static_cast<ErrorCode>(field(0)), static_cast<Phase>(field(1)), field(2), field(3)};
  }
};

/// Start of rank 0's piece of the control region; its barrier follows.
struct GroupImpl::GroupControl {
  alignas(kCacheLineBytes) std::atomic<std::uint64_t> failure;  ///< the first failure anybody saw, packed; 0 = none
  BarrierBlock barrier;
};

/// In every rank's piece, behind the room for GroupControl; two gather slots follow.
struct GroupImpl::RankControl {
  alignas(kCacheLineBytes) std::atomic<std::uint32_t> state;
};

GroupImpl::GroupImpl(std::shared_ptr<World> world, int rank, int num_ranks, std::chrono::milliseconds timeout)
    : world_(std::move(world)),
      rank_(rank),
      num_ranks_(num_ranks),
      timeout_(timeout.count() > 0 ? timeout : std::chrono::milliseconds(settings().timeout_ms())) {
  const std::int64_t spin_us = settings().spin_us();
  const bool own_core = static_cast<unsigned>(num_ranks) <= std::max(1U, std::thread::hardware_concurrency());
  spin_ = spin_us >= 0 ? std::chrono::microseconds(spin_us) : own_core ? kSpinWithOwnCore : kSpinOnSharedCore;
  control_region_ = world_->create_region(rank, num_regions_++, control_bytes(), timeout_);
  control_region_.commit(0, control_bytes());
  // The memory is zero-filled, which is the initial state of every atomic here.
  control_ = std::launder(reinterpret_cast<GroupControl*>(control_region_.base(0)));
  barrier_ = Barrier(&control_->barrier, rank, num_ranks);
  rank_control(rank).state.store(kRankActive, std::memory_order_release);
}

GroupImpl::~GroupImpl() { depart(); }

void GroupImpl::depart() noexcept { rank_control(rank_).state.store(kRankDeparted, std::memory_order_release); }

std::int64_t GroupImpl::control_bytes() const noexcept {
  return static_cast<std::int64_t>(sizeof(GroupControl) + sizeof(RankControl) + 2 * kGatherSlotBytes) +
         static_cast<std::int64_t>(sizeof(PaddedCounter)) * num_ranks_;
}

GroupImpl::RankControl& GroupImpl::rank_control(int rank) const noexcept {
  const std::size_t offset = sizeof(GroupControl) + sizeof(PaddedCounter) * static_cast<std::size_t>(num_ranks_);
  return *std::launder(reinterpret_cast<RankControl*>(control_region_.base(rank) + offset));
}

std::byte* GroupImpl::gather_slot(int rank, std::uint64_t generation) const noexcept {
  return reinterpret_cast<std::byte*>(&rank_control(rank) + 1) + (generation & 1) * kGatherSlotBytes;
}

SymmetricRegion GroupImpl::create_region(std::int64_t reserved_bytes) {
  check_usable();
  return world_->create_region(rank_, num_regions_++, reserved_bytes, timeout_);
}

std::vector<UniqueFd> GroupImpl::exchange_fds(const UniqueFd& own) {
  check_usable();
  try {
    return world_->exchange_fds(own, timeout_);
  } catch (const Error& error) {
    const int peer_rank = error.context().peer_rank;
    if (peer_rank < 0) throw;
    // The ranks that did come hold messages of an exchange that will not be completed: there can be no other.
    fail(error.code(), error.context().phase, peer_rank);
  }
}

std::optional<GroupImpl::Failure> GroupImpl::agreed_failure() const noexcept {
  const std::uint64_t packed = control_->failure.load(std::memory_order_acquire);
  if (packed == 0) return std::nullopt;
  return Failure::unpack(packed);
}

GroupImpl::Failure GroupImpl::agree_on(const Failure& failure) noexcept {
  std::uint64_t expected = 0;
  // Only the first failure counts, so that every survivor names the same rank. pairs with agreed_failure()
  if (control_->failure.compare_exchange_strong(expected, failure.pack(), std::memory_order_acq_rel)) return failure;
  return Failure::unpack(expected);
}

void GroupImpl::raise(const Failure& failure, const MissingRows* missing_rows) const {
  const std::int64_t rows = missing_rows != nullptr && *missing_rows ? (*missing_rows)(failure.peer_rank) : -1;
  const std::string rows_text = rows >= 0 ? fmt::format("; {} rows from it are missing", rows) : std::string();
  std::string text;
  if (failure.peer_rank == rank_) {
    text = fmt::format(
        "this rank was given up by rank {}, which waited {} ms for it in {}; raise the timeout (EPISTLE_TIMEOUT_MS) if "
        "it is only slow",
        failure.reporter_rank, timeout_.count(), to_string(failure.phase));
  } else if (failure.code == ErrorCode::kTimeout) {
    text = fmt::format(
        "rank {} did not arrive within {} ms{}; it is alive: look for a rank that makes other calls than the rest, or "
        "raise the timeout (EPISTLE_TIMEOUT_MS)",
        failure.peer_rank, timeout_.count(), rows_text);
  } else if (failure.code != ErrorCode::kPeerLost) {
    text = fmt::format("rank {} failed in {} ({}){}; the group is broken, start all ranks again", failure.peer_rank,
                       to_string(failure.phase), to_string(failure.code), rows_text);
  } else {
    text = fmt::format("rank {} has exited or left the group{}; the group is broken, start all ranks again",
                       failure.peer_rank, rows_text);
  }
  throw Error(failure.code, text,
              {.rank = rank_, .peer_rank = failure.peer_rank, .phase = failure.phase, .missing_rows = rows});
}

bool GroupImpl::is_lost(int rank) const noexcept {
  // pairs with the release in depart(): what the rank did before it went is visible
  const bool departed = rank_control(rank).state.load(std::memory_order_acquire) == kRankDeparted;
  return departed || !world_->is_alive(rank);
}

int GroupImpl::find_lost_rank() const noexcept {
  for (int peer = 0; peer < num_ranks_; ++peer) {
    if (peer != rank_ && is_lost(peer)) return peer;
  }
  return -1;
}

std::optional<GroupImpl::Failure> GroupImpl::look_for_lost_ranks(const Barrier& barrier, Phase phase) const noexcept {
  for (int peer = 0; peer < num_ranks_; ++peer) {
    if (peer == rank_ || barrier.has_arrived(peer)) continue;
    // Look again after the death was seen: the peer may have arrived just before it went.
    if (is_lost(peer) && !barrier.has_arrived(peer)) {
      return Failure{ErrorCode::kPeerLost, phase, peer, rank_};
    }
  }
  return std::nullopt;
}

void GroupImpl::wait(Barrier& barrier, Phase phase, const MissingRows* missing_rows) {
  const Clock::time_point start = Clock::now();
  const Clock::time_point spin_end = start + spin_;
  while (!barrier.passed()) {
    for (int spin = 0; spin < kSpinsPerClockRead && !barrier.passed(); ++spin) spin_pause();
    if (Clock::now() >= spin_end) break;
  }
  const Clock::time_point deadline = start + timeout_;
  while (!barrier.passed()) {
    barrier.sleep(kSleepSliceUs);
    if (barrier.passed()) break;
    // The failure may be of a later step, which the rank at fault did not reach: here it owes nothing then.
    if (const auto failure = agreed_failure()) {
      raise(*failure, barrier.has_arrived(failure->peer_rank) ? nullptr : missing_rows);
    }
    if (const auto lost = look_for_lost_ranks(barrier, phase)) raise(agree_on(*lost), missing_rows);
    if (Clock::now() < deadline) continue;
    for (int peer = 0; peer < num_ranks_; ++peer) {
      if (!barrier.has_arrived(peer)) raise(agree_on({ErrorCode::kTimeout, phase, peer, rank_}), missing_rows);
    }
  }
  // A rank that was given up may arrive late and complete the barrier: it must not go on alone.
  if (const auto failure = agreed_failure()) raise(*failure, nullptr);
}

void GroupImpl::check_usable() const {
  if (const auto failure = agreed_failure()) raise(*failure, nullptr);
}

void GroupImpl::fail(ErrorCode code, Phase phase, int peer_rank, const MissingRows* missing_rows) {
  raise(agree_on({code, phase, peer_rank, rank_}), missing_rows);
}

void GroupImpl::barrier(Phase phase) {
  check_usable();
  barrier_.arrive();
  wait(barrier_, phase);
}

void GroupImpl::all_gather(const void* input, std::size_t num_bytes, void* output, Phase phase) {
  check_usable();
  const auto* source = static_cast<const std::byte*>(input);
  auto* target = static_cast<std::byte*>(output);
  for (std::size_t done = 0; done < num_bytes; done += kGatherSlotBytes) {
    const std::size_t chunk = std::min(kGatherSlotBytes, num_bytes - done);
    // Two generations: a slot is written again only after every rank has passed the barrier of the generation between,
    // hence has read it.
    const std::uint64_t generation = gather_generation_++;
    std::memcpy(gather_slot(rank_, generation), source + done, chunk);
    barrier_.arrive();
    wait(barrier_, phase);
    for (int peer = 0; peer < num_ranks_; ++peer) {
      std::memcpy(target + static_cast<std::size_t>(peer) * num_bytes + done, gather_slot(peer, generation), chunk);
    }
  }
}

}  // namespace epistle
