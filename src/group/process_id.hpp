// Which process a rank is.
#pragma once

#include <cstdint>

#include "group/descriptor.hpp"

namespace epistle {

/// Lies in shared memory. All zero: a rank of a thread group.
struct ProcessId {
  std::int64_t pid = 0;
  std::uint64_t pid_namespace = 0;  ///< numbers of processes are only unique within one; 0 = not known
  std::uint64_t start_time = 0;     ///< in clock ticks since the machine was started: numbers are used again

  friend bool operator==(const ProcessId&, const ProcessId&) = default;
};

[[nodiscard]] ProcessId own_process_id() noexcept;

/// A descriptor of its own of what `fd` is in another process of the same user, which keeps it open meanwhile. Throws
/// kSystem.
[[nodiscard]] UniqueFd fetch_descriptor(const ProcessId& process, int fd);

/// False where the process has ended, or is in another PID namespace.
[[nodiscard]] bool is_running(const ProcessId& process) noexcept;

}  // namespace epistle
