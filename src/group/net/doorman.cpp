#include "group/net/doorman.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>
#include <utility>

#include <poll.h>

#include <fmt/format.h>

#include "epistle/error.hpp"

#include "core/object_bytes.hpp"
#include "core/random_bytes.hpp"
#include "group/net/stream.hpp"

namespace epistle {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::uint32_t kDoorMagic = 0x45504e54;  // "EPNT"
// Connections whose owner has not proved itself: the oldest has to go when there are more, and each when it takes
// longer.
constexpr std::size_t kMaxStrangersAtDoor = 256;
constexpr std::chrono::seconds kMaxSilence{10};
// What a rank takes at most to say who it is, where it has a core.
constexpr std::chrono::milliseconds kLeastStay{200};
constexpr std::chrono::milliseconds kLookForRoom{5};

/// What the doorman answers.
struct Challenge {
  Nonce nonce{};
  Digest proof{};
};

enum class Side : std::uint8_t { kDoorman, kVisitor };

Digest proof_of(Side side, const Introduction& who, const Nonce& doorman_nonce, const std::string& secret) {
  std::string text = side == Side::kDoorman ? "epistle doorman" : "epistle visitor";
  text.append(object_bytes(who)).append(object_bytes(doorman_nonce));
  return hmac_sha256(secret, text);
}

}  // namespace

Nonce fresh_nonce() {
  Nonce nonce{};
  fill_random(nonce.data(), nonce.size());
  return nonce;
}

Doorman::Doorman(UniqueFd listener, std::string secret)
    : listener_(std::move(listener)), spare_(duplicate(listener_.get())), secret_(std::move(secret)) {}

void Doorman::make_room() noexcept { spare_.reset(); }

/// Whether the oldest stranger has had no time yet to say who it is.
bool Doorman::is_still_fresh() const {
  return !strangers_.empty() && Clock::now() - strangers_.front().since < kLeastStay;
}

std::optional<Visitor> Doorman::next(Deadline deadline, const std::vector<int>& watched) {
  for (;;) {
    accept_all();
    for (auto stranger = strangers_.begin(); stranger != strangers_.end();) {
      stranger = hear(*stranger) ? strangers_.erase(stranger) : std::next(stranger);
    }
    if (!admitted_.empty()) {
      Visitor visitor = std::move(admitted_.front());
      admitted_.pop_front();
      return visitor;
    }
    std::vector<pollfd> entries;
    for (const int socket : watched) entries.push_back({socket, POLLIN, 0});
    entries.push_back({listener_.get(), POLLIN, 0});
    for (const Stranger& stranger : strangers_) entries.push_back({stranger.socket.get(), POLLIN, 0});
    const int num_ready = ::poll(entries.data(), entries.size(), remaining_ms(deadline));
    if (num_ready < 0 && errno != EINTR) {
      throw Error(ErrorCode::kSystem, fmt::format("poll failed: {}", std::strerror(errno)));
    }
    const auto watched_end = entries.begin() + static_cast<std::ptrdiff_t>(watched.size());
    const bool watched_ready =
        std::any_of(entries.begin(), watched_end, [](const pollfd& entry) { return entry.revents != 0; });
    if (num_ready > 0 && watched_ready) return std::nullopt;
    if (num_ready <= 0 && Clock::now() >= deadline) return std::nullopt;
  }
}

void Doorman::accept_all() {
  for (;;) {
    UniqueFd socket = accept_now(listener_.get());
    if (!socket.valid()) {
      const int error = errno;
      if (error == EAGAIN || error == EWOULDBLOCK || error == EINTR || error == ECONNABORTED) return;
      // Ranks that go for each other would all come again, and none get in.
      if (!admitted_.empty()) return;
      if (is_still_fresh()) {
        std::this_thread::sleep_for(kLookForRoom);
        return;
      }
      if (strangers_.empty()) {
        throw Error(ErrorCode::kSystem,
                    fmt::format("accept failed: {}{}", std::strerror(error), descriptor_hint(error)),
                    {.phase = Phase::kRendezvous});
      }
      strangers_.pop_front();
      continue;
    }
    send_without_delay(socket.get());
    if (strangers_.size() == kMaxStrangersAtDoor) strangers_.pop_front();
    strangers_.push_back({.socket = std::move(socket),
                          .bytes = {},
                          .has_introduced_itself = false,
                          .who = {},
                          .nonce = {},
                          .since = Clock::now()});
  }
}

bool Doorman::hear(Stranger& stranger) {
  const std::size_t wanted = stranger.has_introduced_itself ? sizeof(Digest) : sizeof(Introduction);
  const ChannelStatus status =
      read_available(stranger.socket.get(), stranger.bytes, wanted - std::min(wanted, stranger.bytes.size()));
  if (stranger.bytes.size() < wanted) {
    return status == ChannelStatus::kClosed || Clock::now() - stranger.since > kMaxSilence;
  }
  return stranger.has_introduced_itself ? check_proof(stranger) : answer(stranger);
}

bool Doorman::answer(Stranger& stranger) {
  std::memcpy(&stranger.who, stranger.bytes.data(), sizeof(stranger.who));
  stranger.bytes.clear();
  if (stranger.who.magic != kDoorMagic) return true;
  stranger.has_introduced_itself = true;
  stranger.nonce = fresh_nonce();
  const Challenge challenge{stranger.nonce, proof_of(Side::kDoorman, stranger.who, stranger.nonce, secret_)};
  std::string bytes(object_bytes(challenge));
  // Fits into the empty buffer of a new connection.
  return write_available(stranger.socket.get(), bytes) != ChannelStatus::kOk || !bytes.empty();
}

bool Doorman::check_proof(Stranger& stranger) {
  Digest proof{};
  std::memcpy(proof.data(), stranger.bytes.data(), proof.size());
  const Digest expected = proof_of(Side::kVisitor, stranger.who, stranger.nonce, secret_);
  if (equal_in_constant_time(proof, expected)) admitted_.push_back({std::move(stranger.socket), stranger.who});
  return true;
}

ChannelStatus introduce(int socket, Introduction who, const std::string& secret, Deadline deadline) {
  who.magic = kDoorMagic;
  who.nonce = fresh_nonce();
  send_without_delay(socket);
  ChannelStatus status = send_bytes(socket, object_bytes(who), deadline);
  if (status != ChannelStatus::kOk) return status;
  std::string bytes;
  status = receive_bytes(socket, sizeof(Challenge), bytes, deadline);
  if (status != ChannelStatus::kOk) return status;
  Challenge challenge;
  std::memcpy(&challenge, bytes.data(), sizeof(challenge));
  const Digest expected = proof_of(Side::kDoorman, who, challenge.nonce, secret);
  if (!equal_in_constant_time(challenge.proof, expected)) return ChannelStatus::kMalformed;
  return send_bytes(socket, object_bytes(proof_of(Side::kVisitor, who, challenge.nonce, secret)), deadline);
}

}  // namespace epistle
