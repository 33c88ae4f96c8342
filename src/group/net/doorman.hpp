// Who may in: both ends of a connection prove that they know the job's secret before a byte of it counts. A stranger
// learns nothing and holds nobody up.
//
// The visitor says who it is and gives a number that nobody has used before; the doorman answers with one of its own
// and with a code over both that only who knows the secret can make; the visitor answers likewise. Codes are made for
// one side and one pair of numbers, so none can be used again.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "group/fd_channel.hpp"
#include "group/net/address.hpp"
#include "group/net/sha256.hpp"

namespace epistle {

using Nonce = std::array<std::byte, 16>;

/// What a visitor says first.
struct Introduction {
  std::uint32_t magic = 0;
  std::uint32_t version = 0;
  std::int32_t rank = -1;
  std::int32_t num_ranks = 0;
  std::int32_t purpose = 0;  ///< which of the job's doors is meant
  std::uint32_t unused = 0;
  Nonce nonce{};
};

struct Visitor {
  UniqueFd socket;
  Introduction who;
};

class Doorman {
 public:
  Doorman(UniqueFd listener, std::string secret);

  /// The next visitor that knows the secret; nothing when the deadline has come, or when one of `watched` can be read.
  [[nodiscard]] std::optional<Visitor> next(Deadline deadline, const std::vector<int>& watched = {});
  [[nodiscard]] int listener() const noexcept { return listener_.get(); }
  /// Gives up the descriptor that is kept free, so that whoever still comes can be told why nobody more is taken in.
  void make_room() noexcept;

 private:
  struct Stranger {
    UniqueFd socket;
    std::string bytes;
    bool has_introduced_itself = false;
    Introduction who;
    Nonce nonce{};
    std::chrono::steady_clock::time_point since;
  };
  void accept_all();
  [[nodiscard]] bool is_still_fresh() const;
  /// True when this stranger is to be let go; it may have been put among the admitted.
  bool hear(Stranger& stranger);
  bool answer(Stranger& stranger);
  bool check_proof(Stranger& stranger);

  UniqueFd listener_;
  UniqueFd spare_;
  std::string secret_;
  std::deque<Stranger> strangers_;
  std::deque<Visitor> admitted_;
};

/// The visitor's side, on a socket that is connected: kOk when both have proved themselves; kMalformed where the other
/// end does not know the secret; kClosed, kTimedOut.
[[nodiscard]] ChannelStatus introduce(int socket, Introduction who, const std::string& secret, Deadline deadline);

/// From the kernel. Throws kSystem.
[[nodiscard]] Nonce fresh_nonce();

}  // namespace epistle
