#include "group/net/host_message.hpp"

#include <algorithm>
#include <cstring>

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

}  // namespace

void append_message(std::string& bytes, const HostMessageHead& head) { bytes.append(object_bytes(head)); }

void append_arrival(std::string& bytes, const RankControl& control, int rank, Ticket ticket) {
  const std::size_t slot = ticket & 1;
  const CallPost& post = control.posts[slot];
  ArrivalHead arrival{.status = post.status, .blames_another = post.blames_another ? 1U : 0U, .call = post.call};
  if (post.status != ErrorCode::kOk) {
    arrival.message_bytes = static_cast<std::uint32_t>(::strnlen(post.message.data(), post.message.size() - 1));
  }
  arrival.gathered_bytes = static_cast<std::uint32_t>(
      std::clamp<std::int32_t>(post.call.gathered_bytes, 0, static_cast<std::int32_t>(kGatherSlotBytes)));
  append_message(bytes, {.kind = HostMessageKind::kArrived,
                         .rank = rank,
                         .ticket = ticket,
                         .num_bytes = static_cast<std::uint32_t>(sizeof(arrival)) + arrival.message_bytes +
                                      arrival.gathered_bytes});
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

}  // namespace epistle
