// The GPUs of this machine by NVML, the driver's own library: loaded at run time, so that nothing here needs a GPU.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace epistle {

struct GpuProbe {
  std::string name;
  std::string uuid;
  std::string pci_address;   ///< "0000:19:00.0"
  std::string architecture;  ///< "sm_90"
  std::int64_t memory_bytes = 0;
  std::int64_t free_memory_bytes = 0;
  std::int32_t num_active_nvlinks = 0;
  std::int32_t numa_node = -1;             ///< -1 = not told
  std::string fabric_cluster;              ///< of a rack-wide NVLink domain; empty = none
  std::int64_t fabric_clique = -1;         ///< -1 = none
  std::vector<std::int32_t> nvlink_peers;  ///< GPUs of this machine that it reaches over NVLink
};

struct NvmlProbe {
  std::string missing;         ///< why nothing is known; empty where the library answers
  std::string driver_version;  ///< "580.65.06"
  std::string cuda_version;    ///< the newest that the driver can run: "13.0"
  std::vector<GpuProbe> gpus;
};

/// `library` is loaded by that name.
[[nodiscard]] NvmlProbe probe_nvml(const std::string& library = "libnvidia-ml.so.1");

/// GPUs that reach each other over NVLink, by their numbers; a GPU without links is a group by itself.
[[nodiscard]] std::vector<std::vector<std::int32_t>> nvlink_groups(const NvmlProbe& probe);

/// Where the NVIDIA driver has the channels over which hosts share GPU memory (IMEX).
inline constexpr const char* kImexChannels = "/dev/nvidia-caps-imex-channels";

/// The NVLink fabric of several hosts that all GPUs of this machine are in, "cluster:clique": hosts with the same one
/// reach each other's GPU memory. Empty, with the reason in `lack`, where there is none, or nothing may be shared over
/// it: that takes a channel in the folder `channels`.
struct NvlinkFabric {
  std::string fabric;
  std::string lack;
};
[[nodiscard]] NvlinkFabric probe_nvlink_fabric(const std::string& library = "libnvidia-ml.so.1",
                                               const std::string& channels = kImexChannels);

/// The name of the cluster preset that fits these GPUs; "unknown" where none does.
[[nodiscard]] std::string preset_of(const NvmlProbe& probe);

}  // namespace epistle
