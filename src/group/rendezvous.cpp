#include "group/rendezvous.hpp"

#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>

#include <poll.h>

#include <fmt/format.h>

#include "group/limits.hpp"
#include "group/meeting.hpp"
#include "group/rendezvous_packet.hpp"

namespace epistle {
namespace {

using Clock = std::chrono::steady_clock;

Deadline deadline_behind_root(std::chrono::milliseconds timeout) {
  return Clock::now() + timeout + patience_behind_root(timeout);
}

UniqueFd duplicate_or_throw(const UniqueFd& file) {
  UniqueFd copy = duplicate(file.get());
  if (copy.valid()) return copy;
  throw Error(ErrorCode::kSystem,
              fmt::format("duplicating a descriptor failed: {}{}", std::strerror(errno), descriptor_hint(errno)));
}

Packet status_packet(const Complaint& complaint, int rank) {
  Packet packet;
  packet.rank = rank;
  if (complaint) {
    packet = failure_packet(PacketKind::kStatus, complaint->code(), rank, Phase::kCreate, complaint->message());
  }
  return packet;
}

/// Rank 0's verdict on what a rank has told of itself.
Packet verdict_on(const Packet& status, int rank) {
  const std::string text =
      rank == 0 ? std::string(status.text.data())
                : fmt::format("rank {} failed while the group was created: {}", rank, status.text.data());
  return failure_packet(PacketKind::kVerdict, status.code, rank, Phase::kCreate, text);
}

/// Of a rank that has taken no file: it may have said why before it closed.
Packet last_words_of(int socket, ChannelStatus status, int rank, std::chrono::milliseconds timeout) {
  Packet packet;
  if (status == ChannelStatus::kClosed && receive_now(socket, packet) == ChannelStatus::kOk &&
      packet.code != ErrorCode::kOk) {
    return verdict_on(packet, rank);
  }
  return silence_packet(status, rank, Phase::kCreate, timeout);
}

/// A socket's next packet once all are asked: of ranks [1, num_ranks), each one's status. Any rank that ends is seen
/// while others are waited for. Returns the first failure.
std::optional<Packet> collect_statuses(const std::vector<UniqueFd>& sockets, std::chrono::milliseconds timeout) {
  const Deadline deadline = Clock::now() + timeout;
  std::vector<pollfd> open(sockets.size());
  for (std::size_t peer = 0; peer < sockets.size(); ++peer) open[peer] = {sockets[peer].get(), POLLIN, 0};
  std::size_t num_open = sockets.size() - 1;
  while (num_open > 0) {
    const int num_ready = ::poll(open.data(), open.size(), remaining_ms(deadline));
    if (num_ready < 0 && errno != EINTR) {
      throw Error(ErrorCode::kSystem, fmt::format("poll failed: {}", std::strerror(errno)));
    }
    for (std::size_t peer = 1; peer < open.size(); ++peer) {
      if (open[peer].fd < 0) continue;
      Packet packet;
      const int rank = static_cast<int>(peer);
      const ChannelStatus status = receive_now(open[peer].fd, packet);
      if (status == ChannelStatus::kNothing) continue;
      if (status != ChannelStatus::kOk) return silence_packet(status, rank, Phase::kCreate, timeout);
      if (packet.code != ErrorCode::kOk) return verdict_on(packet, rank);
      open[peer].fd = -1;
      --num_open;
    }
    if (num_open == 0 || Clock::now() < deadline) continue;
    for (std::size_t peer = 1; peer < open.size(); ++peer) {
      if (open[peer].fd >= 0) {
        return silence_packet(ChannelStatus::kTimedOut, static_cast<int>(peer), Phase::kCreate, timeout);
      }
    }
  }
  return std::nullopt;
}

}  // namespace

Rendezvous::Rendezvous(const std::string& job, int rank, int num_ranks, std::chrono::milliseconds timeout)
    : rank_(rank), num_ranks_(num_ranks), timeout_(timeout) {
  if (rank == 0) {
    sockets_ = hold_meeting(job, num_ranks, timeout);
  } else {
    sockets_.push_back(come_to_meeting(job, rank, num_ranks, timeout));
  }
}

void Rendezvous::found(const std::function<UniqueFd()>& make, const std::function<void(UniqueFd)>& adopt,
                       std::chrono::milliseconds timeout) {
  if (rank_ == 0) {
    found_as_root(make, adopt, timeout);
  } else {
    found_as_peer(adopt, timeout);
  }
}

void Rendezvous::found_as_root(const std::function<UniqueFd()>& make, const std::function<void(UniqueFd)>& adopt,
                               std::chrono::milliseconds timeout) {
  const Patience patience{.deadline = Clock::now() + timeout};
  std::optional<Packet> failure;
  int num_sent = 1;
  const Complaint complaint = attempt([&] {
    UniqueFd file = make();
    first_file_ = duplicate_or_throw(file);
    adopt(std::move(file));
    Packet packet;
    packet.kind = PacketKind::kFile;
    for (; num_sent < num_ranks_ && !failure; ++num_sent) {
      const ChannelStatus status = send_message(socket_of(num_sent), packet, first_file_.get(), patience);
      if (status != ChannelStatus::kOk) failure = last_words_of(socket_of(num_sent), status, num_sent, timeout);
    }
    if (!failure) failure = collect_statuses(sockets_, timeout);
  });
  if (complaint && !failure) failure = verdict_on(status_packet(complaint, 0), 0);
  if (!failure) return;
  for (int peer = num_sent; peer < num_ranks_; ++peer) {
    (void)attempt([&] { (void)send_message(socket_of(peer), *failure, -1, patience); });
  }
  throw error_of(*failure, 0);
}

void Rendezvous::found_as_peer(const std::function<void(UniqueFd)>& adopt, std::chrono::milliseconds timeout) {
  const Patience patience{.deadline = deadline_behind_root(timeout)};
  const Complaint complaint = attempt([&] {
    Packet packet;
    UniqueFd file;
    const ChannelStatus status = receive_message(socket_of(0), packet, &file, patience);
    if (status != ChannelStatus::kOk) throw error_of(silence_packet(status, 0, Phase::kCreate, timeout), rank_);
    if (packet.code != ErrorCode::kOk) throw error_of(packet, rank_);
    if (packet.kind != PacketKind::kFile) {
      throw error_of(silence_packet(ChannelStatus::kMalformed, 0, Phase::kCreate, timeout), rank_);
    }
    adopt(std::move(file));
  });
  // What rank 0 has said needs no answer.
  if (complaint && complaint->context().peer_rank >= 0) throw Error(*complaint);
  const Packet own = status_packet(complaint, rank_);
  const Complaint unsent = attempt([&] { (void)send_message(socket_of(0), own, -1, patience); });
  if (complaint) throw error_of(own, rank_);
  if (unsent) throw error_of(status_packet(unsent, rank_), rank_);
}

// ---- Transfers ------------------------------------------------------------------------------------------------------

void Rendezvous::send_file(int peer_rank, int owner_rank, const UniqueFd& file, const Complaint& complaint,
                           const Patience& patience) {
  Packet packet = status_packet(complaint, owner_rank);
  if (!complaint) packet.kind = PacketKind::kFile;
  packet.rank = owner_rank;
  packet.transfer = num_transfers_;
  const ChannelStatus status = send_message(socket_of(peer_rank), packet, complaint ? -1 : file.get(), patience);
  if (status == ChannelStatus::kOk) return;
  throw error_of(silence_packet(status, peer_rank, Phase::kCreate, timeout_), rank_);
}

UniqueFd Rendezvous::receive_file(int peer_rank, const Patience& patience) {
  for (;;) {
    Packet packet;
    UniqueFd file;
    const ChannelStatus status = receive_message(socket_of(peer_rank), packet, &file, patience);
    if (status != ChannelStatus::kOk) {
      throw error_of(silence_packet(status, peer_rank, Phase::kCreate, timeout_), rank_);
    }
    // Of a transfer that failed before all of it was read.
    if (packet.transfer != num_transfers_) continue;
    if (packet.kind == PacketKind::kFile && file.valid()) return file;
    throw Error(packet.code == ErrorCode::kOk ? ErrorCode::kSystem : packet.code,
                fmt::format("rank {} has no descriptor to give: {}", packet.rank, packet.text.data()),
                {.rank = rank_, .peer_rank = packet.rank, .phase = Phase::kCreate});
  }
}

UniqueFd Rendezvous::broadcast(const UniqueFd& own, const Complaint& complaint, Deadline deadline,
                               const IsHopeless& is_hopeless) {
  ++num_transfers_;
  if (rank_ != 0) return receive_file(0, {deadline, [&] { return is_hopeless(0); }});
  for (int peer = 1; peer < num_ranks_; ++peer) {
    send_file(peer, 0, own, complaint, {deadline, [&] { return is_hopeless(peer); }});
  }
  if (complaint) throw Error(*complaint);
  return duplicate_or_throw(own);
}

std::vector<UniqueFd> Rendezvous::exchange(const UniqueFd& own, Deadline deadline, const IsHopeless& is_hopeless) {
  ++num_transfers_;
  std::vector<UniqueFd> files(static_cast<std::size_t>(num_ranks_));
  const auto patience_for = [&](int peer) { return Patience{deadline, [&, peer] { return is_hopeless(peer); }}; };
  if (rank_ != 0) {
    send_file(0, rank_, own, std::nullopt, patience_for(0));
    for (UniqueFd& file : files) file = receive_file(0, patience_for(0));
    return files;
  }
  Complaint complaint = attempt([&] {
    files[0] = duplicate_or_throw(own);
    for (int peer = 1; peer < num_ranks_; ++peer) {
      files[static_cast<std::size_t>(peer)] = receive_file(peer, patience_for(peer));
    }
  });
  // A rank that waits for its first file learns that there will be none.
  for (int peer = 1; peer < num_ranks_; ++peer) {
    for (int owner = 0; owner < (complaint ? 1 : num_ranks_); ++owner) {
      const Complaint failed = attempt(
          [&] { send_file(peer, owner, files[static_cast<std::size_t>(owner)], complaint, patience_for(peer)); });
      if (failed && !complaint) complaint = failed;
    }
  }
  if (complaint) throw Error(*complaint);
  return files;
}

}  // namespace epistle
