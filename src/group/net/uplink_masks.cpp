// The part of an uplink that follows changes of the mask, and tells the other hosts of them.
#include <algorithm>
#include <chrono>
#include <thread>

#include "group/net/uplink.hpp"

namespace epistle {
namespace {

// Of a rank that makes a mask count, between the change of the word and what it says of it: its next instructions.
constexpr std::chrono::milliseconds kCommitGrace{500};
constexpr std::chrono::microseconds kCommitPause{50};

/// Whether a mask takes the place of another one that it has ranks in common with. Numbers go round. Of two with one
/// number, which ranks that do not stay together have made count at once, that of the lowest rank does.
bool supersedes(const GroupFailure& next, const GroupFailure& seen) noexcept {
  const auto ahead = static_cast<std::int16_t>(next.mask_number - seen.mask_number);
  return ahead > 0 || (ahead == 0 && next.peer_rank < seen.peer_rank);
}

}  // namespace

bool Uplink::has_followed_mask() const noexcept {
  const std::uint64_t word = control_.group().failure.load(std::memory_order_acquire);
  return GroupFailure::unpack(word).mask_number == mask_number();
}

/// The rank of this host that has made the mask of `word` count; -1 where none has said so yet.
int Uplink::own_leader_of(std::uint64_t word) const noexcept {
  const std::uint16_t number = GroupFailure::unpack(word).mask_number;
  for (const int rank : own_ranks()) {
    // Numbers may come again where two parts of the group have met: the word tells who has led, unless it is a failure.
    const bool is_quiet = word == quiet_word(number, GroupFailure::unpack(word).peer_rank);
    if (is_quiet && GroupFailure::unpack(word).peer_rank != rank) continue;
    const MaskPost& post = control_.rank(rank).mask_posts[number & 1U];
    // pairs with GroupImpl::commit()
    if (post.agreed_number.load(std::memory_order_acquire) == number) return rank;
  }
  return -1;
}

void Uplink::follow_own_mask() {
  if (has_followed_mask()) return;
  const std::uint64_t word = control_.group().failure.load(std::memory_order_acquire);
  const std::uint16_t number = GroupFailure::unpack(word).mask_number;
  const int leader = own_leader_of(word);
  if (leader < 0) return;  // it is about to
  const std::size_t slot = number & 1U;
  const MaskPost& post = control_.rank(leader).mask_posts[slot];
  go_by({.quiet = quiet_word(number, leader),
         .digest = post.agreed_digest.load(std::memory_order_relaxed),
         .ticket = post.agreed_ticket.load(std::memory_order_relaxed),
         .num_regions = post.agreed_regions.load(std::memory_order_relaxed),
         .masked = control_.mask_bits(leader, slot).load()});
}

/// Follows what the ranks here have made count. False where one that is about to say so does not.
bool Uplink::await_own_mask() {
  const Clock::time_point give_up = Clock::now() + kCommitGrace;
  for (follow_own_mask(); !has_followed_mask(); follow_own_mask()) {
    if (Clock::now() >= give_up) return false;
    std::this_thread::sleep_for(kCommitPause);
  }
  return true;
}

bool Uplink::hear_of_mask(std::size_t host, const HostMessageHead& head, std::string_view body) {
  const std::optional<MaskNews> news = take_mask(head, body, control_.num_ranks());
  if (!news) return false;
  for (;;) {
    const bool has_followed = await_own_mask();
    if (!takes_place(*news)) {
      // Who goes on without any rank of this mask has set its own upon this one, unaware of it: it hears of it again.
      if (!has_common_rank(*news)) append_mask(links_[host].outbox, in_force_, control_.num_ranks());
      return true;
    }
    if (put_in_force(*news, has_followed)) break;
    if (!has_followed) return true;
  }
  go_by(*news);
  MaskPost& led = control_.rank(news->leader()).mask_posts[news->number() & 1U];
  led.agreed_digest.store(news->digest, std::memory_order_relaxed);
  led.agreed_ticket.store(news->ticket, std::memory_order_relaxed);
  led.agreed_regions.store(news->num_regions, std::memory_order_relaxed);
  // pairs with GroupImpl::await_mask()
  led.agreed_number.store(news->number(), std::memory_order_release);
  return true;
}

/// Whether a rank that stays under the mask that this thread goes by stays under that of `news`, too.
bool Uplink::has_common_rank(const MaskNews& news) const {
  for (int rank = 0; rank < control_.num_ranks(); ++rank) {
    if (!mask_.has(rank) && !std::binary_search(news.masked.begin(), news.masked.end(), rank)) return true;
  }
  return false;
}

/// Whether `news` takes the place of the mask that this thread goes by. Two parts of a group that were cut off from
/// each other have each gone on without the other, and are at whichever number: when they meet again the larger one
/// stays, of equals that of the lowest rank. The other hears that it is masked out.
bool Uplink::takes_place(const MaskNews& news) const {
  if (has_common_rank(news)) return supersedes(GroupFailure::unpack(news.quiet), GroupFailure::unpack(quiet_));
  const int num_members = control_.num_ranks() - static_cast<int>(news.masked.size());
  if (num_members != mask_.num_members()) return num_members > mask_.num_members();
  return news.leader() < mask_.first_member();
}

/// Into the word of this host. False where a rank of this host has made another mask count, which this thread has not
/// followed: meanwhile, or it was killed before it said so, and then the larger number counts.
bool Uplink::put_in_force(const MaskNews& news, bool has_followed) noexcept {
  std::atomic<std::uint64_t>& word = control_.group().failure;
  std::uint64_t seen = word.load(std::memory_order_acquire);
  for (;;) {
    const GroupFailure found = GroupFailure::unpack(seen);
    if (found.mask_number != mask_number() && (has_followed || !supersedes(GroupFailure::unpack(news.quiet), found))) {
      return false;
    }
    if (word.compare_exchange_weak(seen, news.quiet, std::memory_order_acq_rel)) return true;
  }
}

/// From here on: steps are those of the ranks that stay, and begin behind the last that any of them has taken.
void Uplink::go_by(const MaskNews& news) {
  in_force_ = news;
  mask_.set(news.masked);
  quiet_ = news.quiet;
  root_host_ = table_.host_of[static_cast<std::size_t>(mask_.first_member())];
  told_failure_ = false;
  waiting_.clear();
  for (std::size_t rank = 0; rank < barriers_.size(); ++rank) {
    barriers_[rank].restart(&mask_, news.ticket);
    told_arrival_[rank] = news.ticket;
  }
  std::string bytes;
  append_mask(bytes, news, control_.num_ranks());
  tell_all(bytes);
}

void Uplink::tell_proposals() {
  std::string bytes;
  for (const int rank : own_ranks()) {
    const RankControl& control = control_.rank(rank);
    for (std::size_t slot = 0; slot < control.mask_posts.size(); ++slot) {
      std::uint64_t& told = told_proposals_[static_cast<std::size_t>(rank)][slot];
      const std::uint64_t proposal = control.mask_posts[slot].proposal.load(std::memory_order_acquire);
      if (proposal == told) continue;
      told = proposal;
      append_proposal(bytes, control, rank, slot);
    }
  }
  if (!bytes.empty()) tell_all(bytes);
}

}  // namespace epistle
