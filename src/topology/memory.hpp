// How much memory a process can still take without being killed for it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace epistle {

/// What this process can take before memory runs short on the machine or in one of its control groups, whichever has
/// the least left.
struct AvailableMemory {
  std::int64_t bytes = -1;       ///< page cache that can be dropped counts as free; -1 where the kernel does not tell
  std::int64_t limit_bytes = 0;  ///< all that the machine, or the group, has
  bool of_group = false;

  /// "this control group" or "this machine", of which these are bytes.
  [[nodiscard]] std::string_view owner() const noexcept;
};

/// From the proc and cgroup file systems mounted below `root` ("" = those of this machine).
[[nodiscard]] AvailableMemory available_memory(const std::string& root = "");

/// What is to be left to the rest of the machine of `available_bytes`.
[[nodiscard]] std::int64_t memory_reserve_bytes(std::int64_t available_bytes) noexcept;

/// What helps where memory goes with the tokens of a call.
inline constexpr const char* kFewerTokensHint = "use fewer tokens, a smaller capacity or more memory";

/// Throws kOutOfMemory, with the numbers and `hint`, where `num_bytes` of this process's own memory are not to be had.
/// Asks the kernel only for what is worth it; a system that promises more memory than it has would rather kill than
/// refuse.
void require_memory(std::int64_t num_bytes, const char* what, const char* hint = kFewerTokensHint);

}  // namespace epistle
