// Where the ranks of a job meet.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include <sys/socket.h>
#include <sys/un.h>

#include "group/descriptor.hpp"

namespace epistle {

struct MeetingAddress {
  sockaddr_un name{};
  socklen_t name_bytes = 0;
  std::uint64_t job_check = 0;  ///< known to who knows the job's name, which the address does not tell

  explicit MeetingAddress(const std::string& job);
  [[nodiscard]] const sockaddr* get() const noexcept { return reinterpret_cast<const sockaddr*>(&name); }
};

/// A socket that does not block. Tries again for a moment where the system is short of something. Throws kSystem.
[[nodiscard]] UniqueFd open_socket(int type = SOCK_SEQPACKET);

/// Whether the process at the other end runs as the same user; nothing, with errno set, where the kernel does not tell.
[[nodiscard]] std::optional<bool> is_same_user(int socket) noexcept;

/// True for errors of system calls that may go away when others let go of what they hold.
[[nodiscard]] bool is_shortage(int error) noexcept;

}  // namespace epistle
