// The network cards that RDMA can use, from sysfs.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace epistle {

enum class NicKind : std::int32_t { kInfiniBand, kRoce, kEfa, kOther };

[[nodiscard]] std::string_view to_string(NicKind kind) noexcept;

struct NicPort {
  std::string device;  ///< "mlx5_0"
  std::int32_t port = 1;
  NicKind kind = NicKind::kOther;
  std::string state;            ///< "ACTIVE"; as the kernel writes it
  double gigabits_per_s = 0;    ///< 0 = not told
  std::string driver;           ///< "mlx5_core"; empty = not told
  std::int32_t numa_node = -1;  ///< -1 = not told
};

/// In the order of names. From the sysfs mounted below `root` ("" = that of this machine).
[[nodiscard]] std::vector<NicPort> probe_nics(const std::string& root = "");

}  // namespace epistle
