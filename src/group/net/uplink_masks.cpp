// The part of an uplink that follows changes of the mask, and tells the other hosts of them.
#include <algorithm>

#include "group/net/uplink.hpp"

namespace epistle {
namespace {

/// Whether a mask takes the place of another one. Numbers go round. Of two with one number, which ranks that do not
/// stay together have made count at once, that of the lowest rank does.
bool supersedes(const GroupFailure& next, const GroupFailure& seen) noexcept {
  const auto ahead = static_cast<std::int16_t>(next.mask_number - seen.mask_number);
  return ahead > 0 || (ahead == 0 && next.peer_rank < seen.peer_rank);
}

}  // namespace

bool Uplink::has_followed_mask() const noexcept {
  const std::uint64_t word = control_.group().failure.load(std::memory_order_acquire);
  return GroupFailure::unpack(word).mask_number == mask_number();
}

/// The rank of this host that has made the mask of that number count; -1 where none has said so yet.
int Uplink::own_leader_of(std::uint16_t number) const noexcept {
  for (const int rank : own_ranks()) {
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
  const int leader = own_leader_of(number);
  if (leader < 0) return;  // it is about to
  const std::size_t slot = number & 1U;
  const MaskPost& post = control_.rank(leader).mask_posts[slot];
  go_by({.quiet = quiet_word(number, leader),
         .digest = post.agreed_digest.load(std::memory_order_relaxed),
         .ticket = post.agreed_ticket.load(std::memory_order_relaxed),
         .num_regions = post.agreed_regions.load(std::memory_order_relaxed),
         .masked = control_.mask_bits(leader, slot).load()});
}

bool Uplink::hear_of_mask(const HostMessageHead& head, std::string_view body) {
  const std::optional<MaskNews> news = take_mask(head, body, control_.num_ranks());
  if (!news) return false;
  follow_own_mask();
  if (!supersedes(GroupFailure::unpack(news->quiet), GroupFailure::unpack(quiet_))) return true;
  if (!put_in_force(*news)) return true;
  go_by(*news);
  MaskPost& led = control_.rank(news->leader()).mask_posts[news->number() & 1U];
  led.agreed_digest.store(news->digest, std::memory_order_relaxed);
  led.agreed_ticket.store(news->ticket, std::memory_order_relaxed);
  led.agreed_regions.store(news->num_regions, std::memory_order_relaxed);
  // pairs with GroupImpl::await_mask()
  led.agreed_number.store(news->number(), std::memory_order_release);
  return true;
}

/// Into the word of this host. False where a rank of this host has made another mask count meanwhile.
bool Uplink::put_in_force(const MaskNews& news) noexcept {
  std::atomic<std::uint64_t>& word = control_.group().failure;
  std::uint64_t seen = word.load(std::memory_order_acquire);
  for (;;) {
    const GroupFailure found = GroupFailure::unpack(seen);
    // A failure does not tell who has led to its mask.
    const GroupFailure in_force = found.mask_number == mask_number() ? GroupFailure::unpack(quiet_) : found;
    if (!supersedes(GroupFailure::unpack(news.quiet), in_force)) return false;
    if (word.compare_exchange_weak(seen, news.quiet, std::memory_order_acq_rel)) return true;
  }
}

/// From here on: steps are those of the ranks that stay, and begin behind the last that any of them has taken.
void Uplink::go_by(const MaskNews& news) {
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
