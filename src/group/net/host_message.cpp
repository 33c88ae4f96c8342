#include "group/net/host_message.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/object_bytes.hpp"

namespace epistle {
namespace {

/// A post without the text, of which only what is used travels.
struct ArrivalHead {
  ErrorCode status = ErrorCode::kOk;
  std::uint32_t blames_another = 0;
  std::uint32_t message_bytes = 0;
  std::uint32_t gathered_bytes = 0;
  Call call;
};

struct ProposalBody {
  std::uint64_t slot = 0;
  std::uint64_t proposal = 0;
  std::uint64_t digest = 0;
  std::uint32_t ticket = 0;
  std::uint32_t num_regions = 0;
};

/// Behind it a bit for every rank, set where it is left out.
struct MaskHead {
  std::uint64_t digest = 0;
  std::uint64_t num_regions = 0;
};

constexpr int kBitsOfByte = 8;

std::size_t bytes_of_bits(int num_ranks) noexcept {
  return static_cast<std::size_t>((num_ranks + kBitsOfByte - 1) / kBitsOfByte);
}

}  // namespace

std::size_t max_host_message_bytes(int num_ranks) noexcept {
  constexpr std::size_t kMostOfArrival = sizeof(CallPost) + kGatherSlotBytes + 64;
  return std::max(kMostOfArrival, sizeof(MaskHead) + bytes_of_bits(num_ranks));
}

void append_message(std::string& bytes, const HostMessageHead& head) { bytes.append(object_bytes(head)); }

void append_arrival(std::string& bytes, const RankControl& control, int rank, Ticket ticket, std::uint64_t quiet) {
  const std::size_t slot = ticket & 1;
  const CallPost& post = control.posts[slot];
  ArrivalHead arrival{.status = post.status, .blames_another = post.blames_another ? 1U : 0U, .call = post.call};
  if (post.status != ErrorCode::kOk) {
    arrival.message_bytes = static_cast<std::uint32_t>(::strnlen(post.message.data(), post.message.size() - 1));
  }
  arrival.gathered_bytes = static_cast<std::uint32_t>(
      std::clamp<std::int32_t>(post.call.gathered_bytes, 0, static_cast<std::int32_t>(kGatherSlotBytes)));
  append_message(
      bytes, {.kind = HostMessageKind::kArrived,
              .rank = rank,
              .ticket = ticket,
              .num_bytes = static_cast<std::uint32_t>(sizeof(arrival)) + arrival.message_bytes + arrival.gathered_bytes,
              .failure = quiet});
  bytes.append(object_bytes(arrival));
  bytes.append(post.message.data(), arrival.message_bytes);
  bytes.append(reinterpret_cast<const char*>(control.gather_slots[slot].data()), arrival.gathered_bytes);
}

bool take_arrival(std::string_view body, RankControl& control, Ticket ticket) {
  ArrivalHead arrival;
  if (body.size() < sizeof(arrival)) return false;
  std::memcpy(&arrival, body.data(), sizeof(arrival));
  body.remove_prefix(sizeof(arrival));
  const std::size_t slot = ticket & 1;
  CallPost& post = control.posts[slot];
  if (arrival.message_bytes >= post.message.size() || arrival.gathered_bytes > kGatherSlotBytes) return false;
  if (body.size() != std::size_t{arrival.message_bytes} + arrival.gathered_bytes) return false;
  post.ticket = ticket;
  post.status = arrival.status;
  post.call = arrival.call;
  post.blames_another = arrival.blames_another != 0;
  std::memcpy(post.message.data(), body.data(), arrival.message_bytes);
  post.message[arrival.message_bytes] = '\0';
  std::memcpy(control.gather_slots[slot].data(), body.data() + arrival.message_bytes, arrival.gathered_bytes);
  return true;
}

void append_proposal(std::string& bytes, const RankControl& control, int rank, std::size_t slot) {
  const MaskPost& post = control.mask_posts[slot];
  // pairs with GroupImpl::propose(): what is read behind it is of that proposal or of a later one, of which this host
  // tells as well
  const std::uint64_t proposal = post.proposal.load(std::memory_order_acquire);
  const ProposalBody body{.slot = slot,
                          .proposal = proposal,
                          .digest = post.digest.load(std::memory_order_relaxed),
                          .ticket = post.ticket.load(std::memory_order_relaxed),
                          .num_regions = post.num_regions.load(std::memory_order_relaxed)};
  append_message(bytes, {.kind = HostMessageKind::kProposal, .rank = rank, .num_bytes = sizeof(body)});
  bytes.append(object_bytes(body));
}

bool take_proposal(std::string_view body, RankControl& control) {
  ProposalBody told;
  if (body.size() != sizeof(told)) return false;
  std::memcpy(&told, body.data(), sizeof(told));
  if (told.slot >= control.mask_posts.size()) return false;
  MaskPost& post = control.mask_posts[told.slot];
  post.proposal.store(0, std::memory_order_seq_cst);
  post.digest.store(told.digest, std::memory_order_relaxed);
  post.ticket.store(told.ticket, std::memory_order_relaxed);
  post.num_regions.store(told.num_regions, std::memory_order_relaxed);
  // pairs with GroupImpl::all_propose()
  post.proposal.store(told.proposal, std::memory_order_release);
  return true;
}

void append_mask(std::string& bytes, const MaskNews& news, int num_ranks) {
  const MaskHead head{.digest = news.digest, .num_regions = news.num_regions};
  std::string bits(bytes_of_bits(num_ranks), '\0');
  for (const int rank : news.masked) {
    char& byte = bits[static_cast<std::size_t>(rank / kBitsOfByte)];
    byte = static_cast<char>(static_cast<unsigned char>(byte) | 1U << (rank % kBitsOfByte));
  }
  append_message(bytes, {.kind = HostMessageKind::kMask,
                         .rank = news.leader(),
                         .ticket = news.ticket,
                         .num_bytes = static_cast<std::uint32_t>(sizeof(head) + bits.size()),
                         .failure = news.quiet});
  bytes.append(object_bytes(head));
  bytes.append(bits);
}

std::optional<MaskNews> take_mask(const HostMessageHead& head, std::string_view body, int num_ranks) {
  MaskHead told;
  if (body.size() != sizeof(told) + bytes_of_bits(num_ranks)) return std::nullopt;
  std::memcpy(&told, body.data(), sizeof(told));
  body.remove_prefix(sizeof(told));
  MaskNews news{.quiet = head.failure,
                .digest = told.digest,
                .ticket = head.ticket,
                .num_regions = static_cast<std::uint32_t>(told.num_regions),
                .masked = {}};
  for (int rank = 0; rank < num_ranks; ++rank) {
    const auto byte = static_cast<unsigned char>(body[static_cast<std::size_t>(rank / kBitsOfByte)]);
    if ((byte >> (rank % kBitsOfByte) & 1U) != 0) news.masked.push_back(rank);
  }
  // The lowest of those that stay has led.
  int first = 0;
  for (const int rank : news.masked) first += rank == first ? 1 : 0;
  const bool is_sound = first < num_ranks && news.leader() == first && news.number() != 0 &&
                        news.quiet == quiet_word(news.number(), first);
  return is_sound ? std::optional(std::move(news)) : std::nullopt;
}

}  // namespace epistle
