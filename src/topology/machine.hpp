// What this machine is, as far as the host device cares.
#pragma once

#include <cstdint>
#include <string>

namespace epistle {

struct MachineInfo {
  std::string cpu_model;
  std::string architecture;  ///< "x86_64", "aarch64"
  std::string kernel;        ///< release of the operating system's kernel
  std::string host;
  std::int32_t num_packages = 0;
  std::int32_t num_numa_nodes = 0;
  std::int32_t num_cores = 0;
  std::int32_t num_processing_units = 0;         ///< hardware threads
  std::int32_t num_usable_processing_units = 0;  ///< of these, open to this process (affinity, cgroup)
  std::int64_t last_level_cache_bytes = 0;       ///< of one cache; 0 = not known
  std::int64_t memory_bytes = 0;
};

/// Read once, at the first call. Unknown values stay 0 or empty.
[[nodiscard]] const MachineInfo& machine_info();

}  // namespace epistle
