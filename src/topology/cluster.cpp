#include "topology/cluster.hpp"

#include <cmath>

#include <fmt/format.h>

#include "core/reject.hpp"

namespace epistle {
namespace {

// Bounds hold what is sold today with two orders of magnitude of room, so that a slip of a unit (GB for bytes) is
// found.
constexpr std::array<ClusterFieldInfo, kNumClusterFields> kFields = {{
    {ClusterField::kGpusPerDomain, "gpus_per_domain", 1, 1024, true},
    {ClusterField::kLinkBytesPerS, "link_bytes_per_s", 1e9, 1e14, false},
    {ClusterField::kNicsPerGpu, "nics_per_gpu", 0, 16, false},
    {ClusterField::kNicBytesPerS, "nic_bytes_per_s", 0, 1e13, false},
    {ClusterField::kNumSms, "num_sms", 1, 4096, true},
    {ClusterField::kHbmBytes, "hbm_bytes", 1e9, 1e13, false},
    {ClusterField::kHbmBytesPerS, "hbm_bytes_per_s", 1e10, 1e15, false},
    {ClusterField::kBf16FlopsPerS, "bf16_flops_per_s", 1e12, 1e18, false},
    {ClusterField::kFp8FlopsPerS, "fp8_flops_per_s", 0, 1e18, false},
    {ClusterField::kFp4FlopsPerS, "fp4_flops_per_s", 0, 1e18, false},
    {ClusterField::kMulticast, "multicast", 0, 1, true},
    {ClusterField::kInNetworkReduction, "in_network_reduction", 0, 1, true},
}};

}  // namespace

std::string_view to_string(ScaleUpLink link) noexcept {
  switch (link) {
    case ScaleUpLink::kNvLink:
      return "nvlink";
    case ScaleUpLink::kInfinityFabric:
      return "infinity_fabric";
    case ScaleUpLink::kPcie:
      return "pcie";
  }
  return "unknown";
}

std::span<const ClusterFieldInfo> cluster_fields() noexcept { return kFields; }

std::int32_t Cluster::nics_per_domain() const noexcept {
  return static_cast<std::int32_t>(std::lround(value(ClusterField::kNicsPerGpu) * gpus_per_domain()));
}

std::int32_t Cluster::gpus_per_nic() const noexcept {
  const double nics = value(ClusterField::kNicsPerGpu);
  return nics > 0 && nics < 1 ? static_cast<std::int32_t>(std::lround(1.0 / nics)) : 1;
}

std::int32_t Cluster::num_rails() const noexcept {
  if (network_bytes_per_s() <= 0) return 0;
  return (gpus_per_domain() + gpus_per_nic() - 1) / gpus_per_nic();
}

void check_cluster(const Cluster& cluster) {
  if (cluster.name.empty()) reject("name is empty; give the cluster one");
  for (const ClusterFieldInfo& info : kFields) {
    const double value = cluster.value(info.field);
    const bool in_range = value >= info.min && value <= info.max;
    if (in_range && (!info.whole || value == std::floor(value))) continue;
    reject(fmt::format("{} is {}; it must be {} from {} to {}", info.name, value,
                       info.whole ? "a whole number" : "a number", info.min, info.max));
  }
  if (cluster.value(ClusterField::kNicsPerGpu) > 0 && cluster.value(ClusterField::kNicBytesPerS) == 0) {
    reject("nic_bytes_per_s is 0 although nics_per_gpu is not; give the speed of a card, or no cards");
  }
}

}  // namespace epistle
