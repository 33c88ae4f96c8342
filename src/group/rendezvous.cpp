#include "group/rendezvous.hpp"

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <thread>
#include <utility>

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "epistle/error.hpp"

#include "group/fd_channel.hpp"

namespace epistle {
namespace {

using Clock = std::chrono::steady_clock;

// Raised whenever the layout of shared memory or of these messages changes: ranks of different builds must not meet.
constexpr std::uint32_t kProtocolVersion = 1;
constexpr std::uint32_t kMagic = 0x45504953;  // "EPIS"
constexpr std::chrono::milliseconds kConnectRetry{2};

struct Hello {
  std::uint32_t magic = kMagic;
  std::uint32_t version = kProtocolVersion;
  std::int32_t rank = 0;
  std::int32_t num_ranks = 0;
};

/// From the root, with one descriptor per message, or in place of them when the exchange failed.
struct Reply {
  ErrorCode code = ErrorCode::kOk;
  std::int32_t rank = -1;  ///< whose descriptor this is, or the rank at fault
  Phase phase = Phase::kCreate;
};

// The address is hashed (FNV-1a) to fit sun_path, whatever a launcher puts into a job name.
std::string abstract_address(const std::string& job) {
  constexpr std::uint64_t kFnvOffset = 0xcbf29ce484222325;
  constexpr std::uint64_t kFnvPrime = 0x100000001b3;
  std::uint64_t hash = kFnvOffset;
  for (const char c : job) hash = (hash ^ static_cast<unsigned char>(c)) * kFnvPrime;
  return fmt::format("epistle/{}/{:016x}", ::getuid(), hash);
}

std::pair<sockaddr_un, socklen_t> to_sockaddr(const std::string& address) {
  sockaddr_un result{};
  result.sun_family = AF_UNIX;
  // A leading NUL selects the abstract namespace.
  std::memcpy(result.sun_path + 1, address.data(), address.size());
  return {result, static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + address.size())};
}

UniqueFd open_socket() {
  UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!socket.valid()) throw Error(ErrorCode::kSystem, fmt::format("socket failed: {}", std::strerror(errno)));
  return socket;
}

bool is_same_user(int socket) {
  ucred credentials{};
  socklen_t size = sizeof(credentials);
  return ::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &size) == 0 && credentials.uid == ::getuid();
}

Error::Context at(int rank, int peer_rank, Phase phase) {
  return {.rank = rank, .peer_rank = peer_rank, .phase = phase};
}

[[noreturn]] void throw_exchange_failure(const Reply& failure, int rank, std::chrono::milliseconds timeout) {
  std::string text;
  if (failure.code == ErrorCode::kShapeMismatch) {
    text = fmt::format("rank {} has another group size or another version; start all ranks with the same program",
                       failure.rank);
  } else if (failure.code == ErrorCode::kTimeout) {
    text = fmt::format("rank {} did not join {} within {} ms", failure.rank,
                       failure.phase == Phase::kRendezvous ? "the group" : "the exchange of shared memory",
                       timeout.count());
  } else {
    text = fmt::format("rank {} exited while shared memory was exchanged; start all ranks again", failure.rank);
  }
  throw Error(failure.code, text, at(rank, failure.rank, failure.phase));
}

/// The ranks that have come wait for an exchange; they learn here why there is none.
void tell_joined(const std::vector<UniqueFd>& sockets, const Reply& failure) {
  for (const UniqueFd& socket : sockets) {
    if (socket.valid()) (void)send_message(socket.get(), failure, -1, Clock::now());  // this rank throws in any case
  }
}

ErrorCode to_error_code(ChannelStatus status) {
  return status == ChannelStatus::kTimedOut ? ErrorCode::kTimeout : ErrorCode::kPeerLost;
}

}  // namespace

Rendezvous::Rendezvous(const std::string& job, int rank, int num_ranks, std::chrono::milliseconds timeout)
    : rank_(rank), num_ranks_(num_ranks) {
  const std::string address = abstract_address(job);
  if (rank == 0) {
    accept_peers(address, timeout);
  } else {
    connect_to_root(address, timeout);
  }
}

void Rendezvous::accept_peers(const std::string& address, std::chrono::milliseconds timeout) {
  sockets_.resize(static_cast<std::size_t>(num_ranks_));
  const UniqueFd listener = open_socket();
  const auto [name, name_size] = to_sockaddr(address);
  if (::bind(listener.get(), reinterpret_cast<const sockaddr*>(&name), name_size) != 0) {
    throw Error(
        ErrorCode::kInvalidArgument,
        fmt::format("cannot open the meeting point of this job ({}); is another rank 0 of the same job running?",
                    std::strerror(errno)),
        at(rank_, -1, Phase::kRendezvous));
  }
  if (::listen(listener.get(), num_ranks_) != 0) {
    throw Error(ErrorCode::kSystem, fmt::format("listen failed: {}", std::strerror(errno)));
  }
  const Deadline deadline = Clock::now() + timeout;
  for (int num_joined = 1; num_joined < num_ranks_;) {
    pollfd entry{listener.get(), POLLIN, 0};
    const int num_ready = ::poll(&entry, 1, remaining_ms(deadline));
    if (num_ready < 0 && errno == EINTR) continue;
    if (num_ready == 0) {
      std::vector<int> absent;
      for (int peer = 1; peer < num_ranks_; ++peer) {
        if (!sockets_[static_cast<std::size_t>(peer)].valid()) absent.push_back(peer);
      }
      tell_joined(sockets_, {ErrorCode::kTimeout, absent.front(), Phase::kRendezvous});
      throw Error(ErrorCode::kTimeout,
                  fmt::format("{} of {} ranks joined within {} ms; absent: {}. Were all ranks started, on this host?",
                              num_joined, num_ranks_, timeout.count(), fmt::join(absent, ", ")),
                  at(rank_, absent.front(), Phase::kRendezvous));
    }
    UniqueFd socket(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
    Hello hello;
    if (!socket.valid() || !is_same_user(socket.get()) ||
        receive_message(socket.get(), hello, nullptr, deadline) != ChannelStatus::kOk || hello.magic != kMagic) {
      continue;  // not one of ours
    }
    Reply reply{ErrorCode::kOk, rank_};
    if (hello.version != kProtocolVersion || hello.num_ranks != num_ranks_) reply.code = ErrorCode::kShapeMismatch;
    if (hello.rank < 1 || hello.rank >= num_ranks_) reply.code = ErrorCode::kShapeMismatch;
    if (reply.code == ErrorCode::kOk && sockets_[static_cast<std::size_t>(hello.rank)].valid()) {
      reply.code = ErrorCode::kInvalidArgument;
    }
    (void)send_message(socket.get(), reply, -1, deadline);  // a peer that is gone already shows in the exchange
    if (reply.code == ErrorCode::kShapeMismatch) {
      tell_joined(sockets_, {reply.code, hello.rank, Phase::kRendezvous});
      throw Error(
          reply.code,
          fmt::format("rank {} came with {} ranks and protocol {}; expected {} ranks and protocol {}. Start all "
                      "ranks with the same program and size",
                      hello.rank, hello.num_ranks, hello.version, num_ranks_, kProtocolVersion),
          at(rank_, hello.rank, Phase::kRendezvous));
    }
    if (reply.code != ErrorCode::kOk) continue;
    sockets_[static_cast<std::size_t>(hello.rank)] = std::move(socket);
    ++num_joined;
  }
}

void Rendezvous::connect_to_root(const std::string& address, std::chrono::milliseconds timeout) {
  const Deadline deadline = Clock::now() + timeout;
  const auto [name, name_size] = to_sockaddr(address);
  UniqueFd socket = open_socket();
  while (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&name), name_size) != 0) {
    const bool not_open_yet = errno == ECONNREFUSED || errno == ENOENT || errno == EAGAIN || errno == EINTR;
    if (!not_open_yet) throw Error(ErrorCode::kSystem, fmt::format("connect failed: {}", std::strerror(errno)));
    if (Clock::now() >= deadline) {
      throw Error(ErrorCode::kTimeout,
                  fmt::format("rank 0 did not open the meeting point within {} ms. Was it started, on this host, with "
                              "the same job name?",
                              timeout.count()),
                  at(rank_, 0, Phase::kRendezvous));
    }
    std::this_thread::sleep_for(kConnectRetry);
  }
  if (!is_same_user(socket.get())) {
    throw Error(ErrorCode::kInvalidArgument, "the meeting point of this job belongs to another user",
                at(rank_, 0, Phase::kRendezvous));
  }
  Reply reply;
  ChannelStatus status = send_message(socket.get(), Hello{.rank = rank_, .num_ranks = num_ranks_}, -1, deadline);
  if (status == ChannelStatus::kOk) status = receive_message(socket.get(), reply, nullptr, deadline);
  if (status != ChannelStatus::kOk) {
    throw Error(to_error_code(status), "rank 0 went away while the ranks met", at(rank_, 0, Phase::kRendezvous));
  }
  if (reply.code != ErrorCode::kOk) {
    throw Error(reply.code,
                fmt::format("rank 0 refused this rank ({} of {}): its size or version differs, or the rank came twice",
                            rank_, num_ranks_),
                at(rank_, 0, Phase::kRendezvous));
  }
  sockets_.push_back(std::move(socket));
}

std::vector<UniqueFd> Rendezvous::exchange(const UniqueFd& own, std::chrono::milliseconds timeout) {
  return rank_ == 0 ? exchange_as_root(own, timeout) : exchange_as_peer(own, timeout);
}

std::vector<UniqueFd> Rendezvous::exchange_as_root(const UniqueFd& own, std::chrono::milliseconds timeout) {
  const Deadline deadline = Clock::now() + timeout;
  std::vector<UniqueFd> files(static_cast<std::size_t>(num_ranks_));
  files[0] = UniqueFd(::dup(own.get()));
  Reply failure;
  for (int peer = 1; peer < num_ranks_ && failure.code == ErrorCode::kOk; ++peer) {
    const auto idx = static_cast<std::size_t>(peer);
    std::int32_t sender = -1;
    const ChannelStatus status = receive_message(sockets_[idx].get(), sender, &files[idx], deadline);
    if (status != ChannelStatus::kOk || !files[idx].valid()) failure = {to_error_code(status), peer};
  }
  for (int peer = 1; peer < num_ranks_; ++peer) {
    const int socket = sockets_[static_cast<std::size_t>(peer)].get();
    if (failure.code != ErrorCode::kOk) {
      (void)send_message(socket, failure, -1, deadline);  // this rank throws below in any case
      continue;
    }
    for (int owner = 0; owner < num_ranks_; ++owner) {
      const ChannelStatus status =
          send_message(socket, Reply{ErrorCode::kOk, owner}, files[static_cast<std::size_t>(owner)].get(), deadline);
      if (status != ChannelStatus::kOk) failure = {to_error_code(status), peer};
    }
  }
  if (failure.code != ErrorCode::kOk) throw_exchange_failure(failure, rank_, timeout);
  return files;
}

std::vector<UniqueFd> Rendezvous::exchange_as_peer(const UniqueFd& own, std::chrono::milliseconds timeout) {
  // The root waits first and names the rank at fault; a little patience lets that answer arrive.
  const Deadline deadline = Clock::now() + timeout + timeout / 4 + std::chrono::milliseconds(100);
  const int socket = sockets_.front().get();
  std::vector<UniqueFd> files(static_cast<std::size_t>(num_ranks_));
  ChannelStatus status = send_message(socket, static_cast<std::int32_t>(rank_), own.get(), deadline);
  // A root that gave up on another rank closes its end; what it had to say about that is still to be read.
  if (status == ChannelStatus::kClosed) status = ChannelStatus::kOk;
  for (int owner = 0; owner < num_ranks_ && status == ChannelStatus::kOk; ++owner) {
    Reply reply;
    status = receive_message(socket, reply, &files[static_cast<std::size_t>(owner)], deadline);
    if (status == ChannelStatus::kOk && reply.code != ErrorCode::kOk) {
      throw_exchange_failure(reply, rank_, timeout);
    }
  }
  if (status != ChannelStatus::kOk) throw_exchange_failure({to_error_code(status), 0}, rank_, timeout);
  return files;
}

}  // namespace epistle
