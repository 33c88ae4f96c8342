// The part of a group that goes on without some of its ranks.
//
// The ranks that stay propose the same mask, each in its own piece of the control region, and wait until all of them
// have. The lowest of them leads: when it has seen all proposals it changes the word of the group, which is where any
// failure is agreed on, from what it was to "not broken, under the next mask". So one change wins, whoever else leads
// another one, and a rank that is left out can report no failure any more: the word is not the one it knows.
//
// Where the others make another call instead, each side would wait for the other. A rank that sees that, takes part in
// their step and says there what it calls (meet_other_calls): so all find, in that step, that they make different
// calls.
//
// Over several hosts every host has such a word, and the uplinks carry proposals and what has come of them
// (net/uplink_masks.cpp). What is below finds both where it would find them on one host.
#include <algorithm>
#include <array>
#include <chrono>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "group/descriptor_mail.hpp"
#include "group/group_impl.hpp"
#include "group/limits.hpp"

namespace epistle {

using Clock = std::chrono::steady_clock;

namespace {

// How often a rank looks what the others propose.
constexpr std::chrono::microseconds kProposalPause{100};
// The leader's next instructions, between the change of the word and what it says of it, may take this long.
constexpr std::chrono::milliseconds kCommitGrace{50};

std::uint64_t digest_of(const std::vector<int>& masked) noexcept {
  std::uint64_t digest = 0x9E3779B97F4A7C15ULL;
  for (const int rank : masked) {
    digest = (digest ^ static_cast<std::uint64_t>(rank + 1)) * 0xBF58476D1CE4E5B9ULL;
    digest ^= digest >> 31;
  }
  return digest;
}

std::string text_of(const std::vector<int>& masked) {
  return masked.empty() ? std::string("no rank") : fmt::format("rank(s) {}", fmt::join(masked, ", "));
}

/// Which mask a proposal is for.
std::uint32_t number_in(std::uint64_t proposal) noexcept { return static_cast<std::uint32_t>(proposal); }

}  // namespace

struct GroupImpl::MaskChange {
  std::vector<int> masked;
  std::uint64_t digest = 0;
  int leader = 0;
  Clock::time_point deadline = {};
  // Of the attempt under way:
  std::uint16_t before = 0;  ///< number of the mask that is to go
  std::uint16_t number = 0;  ///< of the one that is to come, or has come late
  std::uint64_t proposal = 0;
  int differing = -1;  ///< a rank that was seen to set another mask

  [[nodiscard]] bool leaves_out(int rank) const { return std::binary_search(masked.begin(), masked.end(), rank); }
  [[nodiscard]] std::size_t slot() const noexcept { return number & 1U; }

  /// Where this very change was made count upon an earlier proposal of this rank, which it had withdrawn as it heard of
  /// another mask first: its number.
  [[nodiscard]] std::optional<std::uint16_t> late_number(const GroupImpl& group) const noexcept {
    const std::uint16_t in_force = group.mask_number_of_group();
    if (in_force == number || in_force == GroupFailure::unpack(group.mask_version()).mask_number) return std::nullopt;
    const std::uint64_t word = group.control_.group().failure.load(std::memory_order_acquire);
    const MaskPost& led = group.control_.rank(leader).mask_posts[in_force & 1U];
    // pairs with commit() and Uplink::hear_of_mask()
    const bool counts = word == quiet_word(in_force, leader) &&
                        led.agreed_number.load(std::memory_order_acquire) == in_force &&
                        led.agreed_digest.load(std::memory_order_relaxed) == digest;
    return counts ? std::optional(in_force) : std::nullopt;
  }
};

void GroupImpl::set_mask(std::vector<int> masked) {
  std::sort(masked.begin(), masked.end());
  masked.erase(std::unique(masked.begin(), masked.end()), masked.end());
  MaskChange change{.masked = std::move(masked)};
  const auto refuse = [&](const std::string& why) {
    refuse_mask(Error(ErrorCode::kInvalidArgument, fmt::format("set_mask of {}: {}", text_of(change.masked), why),
                      {.rank = rank_}));
  };
  if (!change.masked.empty() && (change.masked.front() < 0 || change.masked.back() >= num_ranks_)) {
    refuse(fmt::format("ranks go from 0 to {}", num_ranks_ - 1));
  }
  if (change.leaves_out(rank_)) {
    refuse(fmt::format("this is rank {}; it is the ranks that stay that call it", rank_));
  }
  change.digest = digest_of(change.masked);
  while (change.leaves_out(change.leader)) ++change.leader;
  // Who leads waits first, and says by what it does who was missing.
  change.deadline = Clock::now() + timeout_ +
                    (change.leader == rank_ ? std::chrono::milliseconds(0) : patience_behind_root(timeout_));
  bool is_agreed = false;
  while (!is_agreed) {
    check_connection(change);
    propose(change);
    const Complaint complaint = attempt([&] { is_agreed = await_mask(change); });
    if (!is_agreed) withdraw(change);
    if (complaint) throw Error(*complaint);
  }
  adopt(change);
}

/// Tells ranks that make any call at the same time that this one does not take part.
void GroupImpl::refuse_mask(const Error& complaint) {
  if (failed()) throw Error(complaint);
  try {
    (void)agree({.kind = CallKind::kSetMask}, Phase::kBarrier, complaint);
  } catch (const Error& error) {
    // The others have left this rank out meanwhile, as it has asked them to.
    if (error.code() != ErrorCode::kMaskedOut) throw;
  }
  throw Error(complaint);
}

/// Where this host has lost its connection to others, for good, nobody there would ever hear of this rank.
void GroupImpl::check_connection(const MaskChange& change) const {
  const int leader = world_->leader_of(rank_);
  if (num_hosts() == 1 || leader == rank_ || !change.leaves_out(leader) || !is_lost(leader)) return;
  for (int peer = 0; peer < num_ranks_; ++peer) {
    if (host_of(peer) == host_of(rank_) || change.leaves_out(peer)) continue;
    throw Error(ErrorCode::kUnsupported,
                fmt::format("set_mask of {}: rank {}, which has ended, carried what ranks of this host say to other "
                            "hosts; rank {} there cannot be reached any more: start all ranks again, or mask all ranks "
                            "of other hosts",
                            text_of(change.masked), leader, peer),
                {.rank = rank_, .phase = Phase::kBarrier});
  }
}

void GroupImpl::propose(MaskChange& change) noexcept {
  change.before = mask_number_of_group();
  change.number = next_mask_number(change.before);
  change.differing = -1;
  change.proposal = (std::uint64_t{++num_mask_attempts_} << 32) | change.number;
  MaskPost& post = rank_control(rank_).mask_posts[change.slot()];
  withdraw(change);
  control_.mask_bits(rank_, change.slot()).store(change.masked);
  post.digest.store(change.digest, std::memory_order_relaxed);
  post.ticket.store(barrier_.next_ticket() - 1, std::memory_order_relaxed);
  post.num_regions.store(static_cast<std::uint32_t>(num_regions_), std::memory_order_relaxed);
  // pairs with all_propose()
  post.proposal.store(change.proposal, std::memory_order_release);
  world_->notify();
}

void GroupImpl::withdraw(const MaskChange& change) noexcept {
  rank_control(rank_).mask_posts[change.slot()].proposal.store(0, std::memory_order_seq_cst);
  world_->notify();
}

/// Whether all ranks that stay propose this change.
bool GroupImpl::all_propose(const MaskChange& change) const noexcept {
  for (int peer = 0; peer < num_ranks_; ++peer) {
    if (change.leaves_out(peer)) continue;
    const MaskPost& post = rank_control(peer).mask_posts[change.slot()];
    // pairs with the release in propose()
    if (number_in(post.proposal.load(std::memory_order_acquire)) != change.number) return false;
    if (post.digest.load(std::memory_order_relaxed) != change.digest) return false;
  }
  return true;
}

/// The leader's: makes the change count. False where the group has changed otherwise meanwhile.
bool GroupImpl::commit(const MaskChange& change) noexcept {
  Ticket ticket = 0;
  std::uint32_t num_regions = 0;
  bool is_first = true;
  for (int peer = 0; peer < num_ranks_; ++peer) {
    if (change.leaves_out(peer)) continue;
    const MaskPost& post = rank_control(peer).mask_posts[change.slot()];
    const Ticket own = post.ticket.load(std::memory_order_relaxed);
    // Tickets go round.
    if (is_first || static_cast<std::int32_t>(own - ticket) > 0) ticket = own;
    num_regions = std::max(num_regions, post.num_regions.load(std::memory_order_relaxed));
    is_first = false;
  }
  MaskPost& own = rank_control(rank_).mask_posts[change.slot()];
  own.agreed_digest.store(change.digest, std::memory_order_relaxed);
  // One more: a rank may be about to take a step, with others that make another call, since it said what its last was.
  own.agreed_ticket.store(ticket + 1, std::memory_order_relaxed);
  // One more: a rank that is left out may be about to make the last of them.
  own.agreed_regions.store(num_regions + 1, std::memory_order_relaxed);
  std::atomic<std::uint64_t>& word = control_.group().failure;
  std::uint64_t seen = word.load(std::memory_order_acquire);
  // Failures that are reported meanwhile are of the mask that goes.
  while (GroupFailure::unpack(seen).mask_number == change.before) {
    if (!word.compare_exchange_weak(seen, quiet_word(change.number, rank_), std::memory_order_acq_rel)) continue;
    // pairs with await_mask()
    own.agreed_number.store(change.number, std::memory_order_release);
    world_->notify();
    return true;
  }
  return false;
}

std::uint16_t GroupImpl::mask_number_of_group() const noexcept {
  return GroupFailure::unpack(control_.group().failure.load(std::memory_order_acquire)).mask_number;
}

/// Returns true when the change counts; false when another one did, and this one has to be proposed on top of that.
bool GroupImpl::await_mask(MaskChange& change) {
  const bool leads = change.leader == rank_;
  Clock::time_point give_up = change.deadline;
  for (;;) {
    if (leads && all_propose(change) && commit(change)) return true;
    if (!leads && has_come_to_count(change)) return true;
    if (const auto number = leads ? std::nullopt : change.late_number(*this)) {
      withdraw(change);
      change.number = *number;
      return true;
    }
    // It may be about to think better of it.
    if (const int peer = find_differing(change); peer >= 0) change.differing = peer;
    if (meet_other_calls(change)) return false;
    const Clock::time_point now = Clock::now();
    if (now >= change.deadline) throw_missing(change, change.differing);
    if (now >= give_up) return false;
    if (give_up == change.deadline && mask_number_of_group() != change.before) give_up = now + kCommitGrace;
    for (int peer = 0; peer < num_ranks_; ++peer) {
      if (peer == rank_ || change.leaves_out(peer) || !is_lost(peer) || may_come_back(peer)) continue;
      // It may have made the mask count just before it went.
      if (!leads && has_come_to_count(change)) return true;
      throw Error(
          ErrorCode::kPeerLost,
          fmt::format("rank {} has exited or left the group{}, and the mask is {}; mask it as well", peer,
                      host_of(peer) == host_of(rank_) ? "" : ", or its host cannot be reached", text_of(change.masked)),
          {.rank = rank_, .peer_rank = peer, .phase = Phase::kBarrier});
    }
    std::this_thread::sleep_for(kProposalPause);
  }
}

bool GroupImpl::has_come_to_count(const MaskChange& change) const noexcept {
  const MaskPost& led = rank_control(change.leader).mask_posts[change.slot()];
  // pairs with commit()
  return led.agreed_number.load(std::memory_order_acquire) == change.number &&
         led.agreed_digest.load(std::memory_order_relaxed) == change.digest;
}

/// Whether `rank` is in a set_mask that would make the mask of that number.
bool GroupImpl::proposes(int rank, std::uint16_t number) const noexcept {
  // pairs with propose()
  return number_in(rank_control(rank).mask_posts[number & 1U].proposal.load(std::memory_order_acquire)) == number;
}

/// Whether a rank that is to stay does something else, and nobody can end that: each of the others is in a set_mask
/// too, or waits in the step that this rank would take next. One that is in neither may be the failure that the others
/// are about to find.
bool GroupImpl::is_deadlocked(const MaskChange& change) const noexcept {
  const Ticket ticket = barrier_.next_ticket();
  if (failed() || !barrier_.passed(ticket - 1) || all_propose(change)) return false;
  bool differs = false;
  for (int peer = 0; peer < num_ranks_; ++peer) {
    if (peer == rank_ || is_masked(peer)) continue;
    const MaskPost& post = rank_control(peer).mask_posts[change.slot()];
    const bool is_same = proposes(peer, change.number) && post.digest.load(std::memory_order_relaxed) == change.digest;
    if (is_same) continue;
    if (!proposes(peer, change.number) && !barrier_.has_arrived(peer, ticket)) return false;
    differs = differs || !change.leaves_out(peer);
  }
  return differs;
}

/// The way out of a deadlock: throws what all ranks find in the step of the others. Returns false where there is none,
/// true where the group has changed meanwhile, or broke, and the change has to be proposed anew.
bool GroupImpl::meet_other_calls(const MaskChange& change) {
  if (!is_deadlocked(change)) return false;
  // Who was seen in another call may have come there behind a change that counts, of which this rank has yet to hear.
  if (mask_number_of_group() != change.before) return false;
  // Lost behind its arrival in the step, where nobody looks for it: the others are to learn what this rank knows.
  for (const int masked : change.masked) {
    if (is_masked(masked) || !is_lost(masked)) continue;
    (void)agree_on(loss_of(masked, Phase::kBarrier));
    return true;
  }
  // Before the step: who is through it may propose something at once, and must not find this proposal beside it.
  withdraw(change);
  const Complaint found =
      attempt([&] { (void)agree({.kind = CallKind::kSetMask, .detail = change.digest}, Phase::kBarrier); });
  // Where the mask has changed meanwhile the step was no step of the others.
  if (!found || failed() || mask_number_of_group() != change.before) return true;
  if (found->code() == ErrorCode::kShapeMismatch && change.differing >= 0) throw_missing(change, change.differing);
  throw AgreedError(*found);
}

/// Of a rank that is masked out now, and whose host is silent: it may just be waking up.
bool GroupImpl::may_come_back(int rank) const noexcept {
  return is_masked(rank) && rank_control(rank).state.load(std::memory_order_acquire) == RankState::kHostSilent;
}

/// A rank that is to stay and proposes another change; -1 = none.
int GroupImpl::find_differing(const MaskChange& change) const noexcept {
  for (int peer = 0; peer < num_ranks_; ++peer) {
    const MaskPost& post = rank_control(peer).mask_posts[change.slot()];
    if (change.leaves_out(peer) || number_in(post.proposal.load(std::memory_order_acquire)) != change.number) continue;
    if (post.digest.load(std::memory_order_relaxed) != change.digest) return peer;
  }
  return -1;
}

void GroupImpl::throw_missing(const MaskChange& change, int differing) const {
  const bool is_left_out = GroupFailure::unpack(mask_version()).mask_number != mask_number_of_group();
  const char* const hint = is_left_out ? "; until then this rank is left out" : "";
  const ErrorCode late = is_left_out ? ErrorCode::kMaskedOut : ErrorCode::kTimeout;
  if (differing >= 0) {
    throw Error(ErrorCode::kShapeMismatch,
                fmt::format("rank {} sets another mask; here it is {}: all ranks that stay must set the same one{}",
                            differing, text_of(change.masked), hint),
                {.rank = rank_, .peer_rank = differing, .phase = Phase::kBarrier});
  }
  for (int peer = 0; peer < num_ranks_; ++peer) {
    if (change.leaves_out(peer)) continue;
    const MaskPost& post = rank_control(peer).mask_posts[change.slot()];
    if (number_in(post.proposal.load(std::memory_order_acquire)) == change.number) continue;
    throw Error(late,
                fmt::format("rank {} did not call set_mask within {} ms; the mask is {}: mask it as well, or call it "
                            "there{}",
                            peer, timeout_.count(), text_of(change.masked), hint),
                {.rank = rank_, .peer_rank = peer, .phase = Phase::kBarrier});
  }
  throw Error(late,
              fmt::format("rank {} has not made the mask count within {} ms: mask it as well{}", change.leader,
                          timeout_.count(), hint),
              {.rank = rank_, .peer_rank = change.leader, .phase = Phase::kBarrier});
}

void GroupImpl::adopt(const MaskChange& change) noexcept {
  const MaskPost& led = rank_control(change.leader).mask_posts[change.slot()];
  const Ticket ticket = led.agreed_ticket.load(std::memory_order_relaxed);
  num_regions_ = static_cast<int>(led.agreed_regions.load(std::memory_order_relaxed));
  mask_.set(change.masked);
  barrier_.restart(&mask_, ticket);
  last_waited_ = ticket;
  refused_steps_.clear();
  quiet_.store(quiet_word(change.number, change.leader), std::memory_order_relaxed);
}

// ---- Memory that ranks share under a mask
// -----------------------------------------------------------------------------

int GroupImpl::first_member_here() const noexcept {
  int rank = world_->leader_of(rank_);
  while (is_masked(rank) || host_of(rank) != host_of(rank_)) ++rank;
  return rank;
}

std::vector<UniqueFd> GroupImpl::fetch_descriptors(const UniqueFd& own, const Complaint& complaint) {
  const Call call{.kind = CallKind::kExchangeDescriptors};
  const std::vector<int> numbers = gather(call, Phase::kCreate, own.get(), complaint);
  std::vector<UniqueFd> files(static_cast<std::size_t>(num_ranks_));
  // All are open until all have come through this step.
  take_together(call, Phase::kCreate, [&] {
    for (int peer = 0; peer < num_ranks_; ++peer) {
      const auto idx = static_cast<std::size_t>(peer);
      if (is_masked(peer) || numbers[idx] < 0 || host_of(peer) != host_of(rank_)) continue;
      files[idx] = fetch_descriptor(rank_control(peer).process, numbers[idx]);
    }
  });
  return files;
}

/// As fetch_descriptors(), for descriptors of any kind: those of a GPU's memory are none of a file that /proc opens
/// anew.
std::vector<UniqueFd> GroupImpl::mail_descriptors(const UniqueFd& own) {
  const Call call{.kind = CallKind::kExchangeDescriptors};
  std::optional<DescriptorMail> mail;
  const Complaint no_mail = attempt([&] { mail.emplace(); });
  const std::vector<DescriptorMail::Address> addresses =
      gather(call, Phase::kCreate, mail ? mail->address() : DescriptorMail::Address{}, no_mail);
  std::vector<int> ranks;
  for (int rank = 0; rank < num_ranks_; ++rank) {
    if (!is_masked(rank)) ranks.push_back(rank);
  }
  std::vector<UniqueFd> files;
  const Watch waiting = watch();
  const Complaint complaint = attempt([&] {
    files = mail->exchange({ranks, addresses, rank_}, own, waiting.deadline, waiting.is_hopeless);
  });
  conclude(call, complaint);
  return files;
}

SymmetricRegion GroupImpl::create_region_of_members(std::int64_t reserved_bytes) {
  UniqueFd own;
  const Complaint complaint = attempt([&] {
    if (rank_ == first_member_here()) own = world_->create_region_file(reserved_bytes);
  });
  std::vector<UniqueFd> files = fetch_descriptors(own, complaint);
  SymmetricRegion region;
  take_together({.kind = CallKind::kCreateRegion, .detail = static_cast<std::uint64_t>(reserved_bytes)}, Phase::kCreate,
                [&] {
                  region = world_->map_region_file(
                      rank_, std::move(files[static_cast<std::size_t>(first_member_here())]), reserved_bytes);
                });
  return region;
}

}  // namespace epistle
