// How much memory a process can still take without being killed for it.
#pragma once

#include <cstdint>
#include <string>

namespace epistle {

/// Bytes that this process can take before memory runs short on the machine or in one of its control groups; page
/// cache that can be dropped counts as free. -1 where the kernel does not tell.
[[nodiscard]] std::int64_t available_memory_bytes();

/// The same, from the proc and cgroup file systems mounted below `root` ("" = those of this machine).
[[nodiscard]] std::int64_t available_memory_bytes(const std::string& root);

}  // namespace epistle
