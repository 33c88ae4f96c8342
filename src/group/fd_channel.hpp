// Messages of fixed size over a Unix socket, with at most one file descriptor each. Every wait has a deadline, and ends
// as soon as it is known that what it waits for will not come.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <type_traits>

#include "group/descriptor.hpp"

namespace epistle {

using Deadline = std::chrono::steady_clock::time_point;

enum class ChannelStatus : std::int32_t {
  kOk,
  kClosed,
  kTimedOut,
  kGivenUp,   ///< Patience::is_hopeless has said so
  kNothing,   ///< receive_now: no message is there
  kMalformed  ///< a message that nobody of ours sends
};

/// How long to wait.
struct Patience {
  Deadline deadline;
  std::function<bool()> is_hopeless = {};  ///< asked every few milliseconds; empty: never
};

/// Milliseconds until `deadline`, at least 0, as poll(2) takes them.
[[nodiscard]] int remaining_ms(Deadline deadline) noexcept;

/// Sends `num_bytes` at once; `fd` < 0 sends none. Throws kSystem for what is neither the peer's doing nor passes.
[[nodiscard]] ChannelStatus send_message(int socket, const void* data, std::size_t num_bytes, int fd,
                                         const Patience& patience);

/// Receives exactly `num_bytes`; a descriptor that came along is put into `fd` (may be null: then it is closed). Throws
/// kSystem, also where a descriptor came and this process may have no more.
[[nodiscard]] ChannelStatus receive_message(int socket, void* data, std::size_t num_bytes, UniqueFd* fd,
                                            const Patience& patience);

/// The same without waiting.
[[nodiscard]] ChannelStatus receive_now(int socket, void* data, std::size_t num_bytes, UniqueFd* fd);

template <typename Message>
[[nodiscard]] ChannelStatus send_message(int socket, const Message& message, int fd, const Patience& patience) {
  static_assert(std::is_trivially_copyable_v<Message>);
  return send_message(socket, &message, sizeof(message), fd, patience);
}

template <typename Message>
[[nodiscard]] ChannelStatus receive_message(int socket, Message& message, UniqueFd* fd, const Patience& patience) {
  static_assert(std::is_trivially_copyable_v<Message>);
  return receive_message(socket, &message, sizeof(message), fd, patience);
}

template <typename Message>
[[nodiscard]] ChannelStatus receive_now(int socket, Message& message, UniqueFd* fd = nullptr) {
  static_assert(std::is_trivially_copyable_v<Message>);
  return receive_now(socket, &message, sizeof(message), fd);
}

}  // namespace epistle
