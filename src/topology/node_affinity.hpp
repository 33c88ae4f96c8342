// Whether this process may run where a GPU is: a rank that is bound to another NUMA node reaches its GPU across
// sockets.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace epistle {

struct NodeAffinity {
  std::int32_t num_units = 0;  ///< hardware threads of the node
  std::int32_t num_open = 0;   ///< of these, open to the calling thread
};

inline constexpr const char* kNodeFolder = "/sys/devices/system/node";

/// Nothing where the node is not told or not known to the kernel.
[[nodiscard]] std::optional<NodeAffinity> node_affinity(std::int32_t node, const std::string& folder = kNodeFolder);

}  // namespace epistle
