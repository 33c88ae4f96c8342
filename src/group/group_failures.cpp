// The part of a group that finds failures, agrees on one and throws it.
#include <algorithm>
#include <chrono>
#include <string>
#include <thread>

#include <fmt/format.h>

#include "group/group_impl.hpp"
#include "group/limits.hpp"

namespace epistle {

using Clock = std::chrono::steady_clock;

namespace {

// How often a rank that has reported a failure looks whether the host that decides has answered.
constexpr std::chrono::microseconds kVerdictPause{200};

}  // namespace

GroupFailure GroupImpl::agree_on(const GroupFailure& failure) const noexcept {
  const std::uint64_t quiet = mask_version();
  // Who leads the change of a mask is the lowest rank that stays; its host says which failure counts.
  if (host_of(GroupFailure::unpack(quiet).peer_rank) == host_of(rank_)) {
    const GroupFailure agreed = decide(failure);
    world_->notify();
    return agreed;
  }
  GroupControl& group = control_.group();
  GroupFailure report = failure;
  report.mask_number = GroupFailure::unpack(quiet).mask_number;
  std::uint64_t seen = group.report.load(std::memory_order_acquire);
  // What was reported under another mask is over. pairs with the uplink, which sends it to the host that decides and
  // puts the answer into `failure`
  while ((seen == 0 || GroupFailure::unpack(seen).mask_number != report.mask_number) &&
         !group.report.compare_exchange_weak(seen, report.pack(), std::memory_order_acq_rel)) {
  }
  world_->notify();
  const int leader = world_->leader_of(rank_);
  const Clock::time_point deadline = Clock::now() + patience_behind_root(timeout_);
  while (!agreed_failure() && Clock::now() < deadline && group.uplink_gone.load(std::memory_order_acquire) == 0) {
    if (leader != rank_ && is_lost(leader)) break;
    std::this_thread::sleep_for(kVerdictPause);
  }
  // Where nobody has answered this host has to do without.
  return decide(failure);
}

GroupFailure GroupImpl::decide(GroupFailure failure) const noexcept {
  const std::uint64_t quiet = mask_version();
  failure.mask_number = GroupFailure::unpack(quiet).mask_number;
  return seen_from_here(control_.decide(failure, quiet));
}

std::optional<GroupFailure> GroupImpl::agreed_failure() const noexcept {
  const std::optional<GroupFailure> failure = control_.failure(mask_version());
  if (!failure) return std::nullopt;
  return seen_from_here(*failure);
}

/// What a group says under another mask than this rank's is no business of this rank's.
GroupFailure GroupImpl::seen_from_here(const GroupFailure& failure) const noexcept {
  const bool is_known = failure.mask_number == GroupFailure::unpack(mask_version()).mask_number;
  if (is_known && failure.code != ErrorCode::kOk) return failure;
  return {ErrorCode::kMaskedOut, Phase::kNone, rank_, rank_, failure.mask_number};
}

void GroupImpl::raise(const GroupFailure& failure, const MissingRows* missing_rows) const {
  const std::int64_t rows = missing_rows != nullptr && *missing_rows ? (*missing_rows)(failure.peer_rank) : -1;
  const std::string rows_text = rows >= 0 ? fmt::format("; {} rows from it are missing", rows) : std::string();
  std::string text;
  if (failure.code == ErrorCode::kAborted) {
    text = fmt::format("{} has called abort(); the group is broken, start all ranks again",
                       failure.peer_rank == rank_ ? "this rank" : fmt::format("rank {}", failure.peer_rank));
  } else if (failure.code == ErrorCode::kMaskedOut) {
    text =
        "the other ranks go on without this one, or have set a mask that this one does not know; nothing that it does "
        "reaches them: to take part again all have to call set_mask with the same ranks, this one not among them";
  } else if (failure.peer_rank == rank_) {
    text = fmt::format(
        "this rank was given up by rank {}, which waited {} ms for it in {}; raise the timeout (EPISTLE_TIMEOUT_MS) if "
        "it is only slow",
        failure.reporter_rank, timeout_.count(), to_string(failure.phase));
  } else if (failure.code == ErrorCode::kTimeout &&
             rank_control(failure.peer_rank).state.load(std::memory_order_acquire) == RankState::kHostSilent) {
    text = fmt::format(
        "the host of rank {} has not been heard of for most of {} ms{}: the network is cut, or the host is stopped or "
        "gone; the group is broken: go on without its ranks (set_mask), or start all ranks again",
        failure.peer_rank, timeout_.count(), rows_text);
  } else if (failure.code == ErrorCode::kTimeout) {
    text = fmt::format(
        "rank {} did not arrive within {} ms{}; it is alive: look for a rank that makes other calls than the rest, "
        "raise "
        "the timeout (EPISTLE_TIMEOUT_MS), or go on without it (set_mask)",
        failure.peer_rank, timeout_.count(), rows_text);
  } else if (failure.code != ErrorCode::kPeerLost) {
    text = fmt::format("rank {} failed in {} ({}){}; the group is broken, start all ranks again", failure.peer_rank,
                       to_string(failure.phase), to_string(failure.code), rows_text);
  } else {
    text = fmt::format(
        "rank {} has exited or left the group{}; the group is broken: go on without it (set_mask), or "
        "start all ranks again",
        failure.peer_rank, rows_text);
  }
  throw AgreedError(failure.code, text,
                    {.rank = rank_, .peer_rank = failure.peer_rank, .phase = failure.phase, .missing_rows = rows});
}

bool GroupImpl::is_lost(int rank) const noexcept {
  // pairs with the release in depart(), and in the uplink: what the rank did before it went is visible
  const RankControl& control = rank_control(rank);
  if (control.state.load(std::memory_order_acquire) >= RankState::kDeparted) return true;
  return !world_->is_alive(rank, control.process);
}

/// Who is named for a host: the rank that leads there, unless nobody waits for that one.
int GroupImpl::speaker_of(int rank) const noexcept {
  const int leader = world_->leader_of(rank);
  return is_masked(leader) ? rank : leader;
}

GroupFailure GroupImpl::loss_of(int rank, Phase phase) const noexcept {
  switch (rank_control(rank).state.load(std::memory_order_acquire)) {
    case RankState::kHostLost:
      return {ErrorCode::kPeerLost, phase, speaker_of(rank), rank_};
    case RankState::kHostSilent:
      return {ErrorCode::kTimeout, phase, speaker_of(rank), rank_};
    default:
      return {ErrorCode::kPeerLost, phase, rank, rank_};
  }
}

GroupHealth GroupImpl::health() const noexcept {
  if (const auto failure = agreed_failure()) return {failure->code, failure->peer_rank};
  const int lost = find_lost_rank();
  if (lost < 0) return {};
  const GroupFailure loss = loss_of(lost, Phase::kNone);
  return {loss.code, loss.peer_rank};
}

std::vector<int> GroupImpl::lost_ranks() const {
  std::vector<int> ranks;
  for (int peer = 0; peer < num_ranks_; ++peer) {
    if (peer != rank_ && !is_masked(peer) && is_lost(peer)) ranks.push_back(peer);
  }
  return ranks;
}

std::vector<int> GroupImpl::suspects() const {
  const GroupHealth found = health();
  std::vector<int> lost = lost_ranks();
  // A host that is silent takes all of its ranks with it.
  const bool is_silent_host =
      found.code == ErrorCode::kTimeout && std::find(lost.begin(), lost.end(), found.peer_rank) != lost.end();
  if (is_silent_host || (found.code == ErrorCode::kPeerLost && !lost.empty())) return lost;
  return found.peer_rank < 0 ? std::vector<int>{} : std::vector<int>{found.peer_rank};
}

void GroupImpl::abort() noexcept { (void)agree_on({ErrorCode::kAborted, Phase::kNone, rank_, rank_}); }

int GroupImpl::find_lost_rank() const noexcept {
  for (int peer = 0; peer < num_ranks_; ++peer) {
    if (peer != rank_ && !is_masked(peer) && is_lost(peer)) return peer;
  }
  return -1;
}

bool GroupImpl::failed() const noexcept { return agreed_failure().has_value(); }

void GroupImpl::check_usable(const MissingRows* missing_rows) const {
  if (const auto failure = agreed_failure()) raise(*failure, missing_rows);
}

void GroupImpl::fail_if_lost(Phase phase, const MissingRows* missing_rows) {
  if (const int lost = find_lost_rank(); lost >= 0) raise(agree_on(loss_of(lost, phase)), missing_rows);
}

void GroupImpl::fail(ErrorCode code, Phase phase, int peer_rank, const MissingRows* missing_rows) {
  raise(agree_on({code, phase, peer_rank, rank_}), missing_rows);
}

}  // namespace epistle
