// Messages of fixed size over a Unix socket, with at most one file descriptor each, under a deadline.
#pragma once

#include <chrono>
#include <cstdint>
#include <type_traits>

#include "group/shared_memory.hpp"

namespace epistle {

using Deadline = std::chrono::steady_clock::time_point;

enum class ChannelStatus : std::int32_t { kOk, kClosed, kTimedOut };

/// Milliseconds until `deadline`, at least 0, as poll(2) takes them.
[[nodiscard]] int remaining_ms(Deadline deadline) noexcept;

/// Sends `num_bytes` at once; `fd` < 0 sends none.
[[nodiscard]] ChannelStatus send_message(int socket, const void* data, std::size_t num_bytes, int fd,
                                         Deadline deadline);

/// Receives exactly `num_bytes`; a descriptor that came along is put into `fd` (may be null: then it is closed).
[[nodiscard]] ChannelStatus receive_message(int socket, void* data, std::size_t num_bytes, UniqueFd* fd,
                                            Deadline deadline);

template <typename Message>
[[nodiscard]] ChannelStatus send_message(int socket, const Message& message, int fd, Deadline deadline) {
  static_assert(std::is_trivially_copyable_v<Message>);
  return send_message(socket, &message, sizeof(message), fd, deadline);
}

template <typename Message>
[[nodiscard]] ChannelStatus receive_message(int socket, Message& message, UniqueFd* fd, Deadline deadline) {
  static_assert(std::is_trivially_copyable_v<Message>);
  return receive_message(socket, &message, sizeof(message), fd, deadline);
}

}  // namespace epistle
