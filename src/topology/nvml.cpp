#include "topology/nvml.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <utility>

#include <fmt/format.h>

#include "core/ascii.hpp"
#include "core/loaded_library.hpp"

namespace epistle {
namespace {

// What is used of NVML's interface, which keeps names and layouts: the header needs not be there to build this.
using NvmlDevice = void*;
constexpr int kSuccess = 0;
constexpr unsigned kTextBytes = 96;
constexpr unsigned kMaxLinks = 18;
constexpr int kP2pNvlink = 2;                  // nvmlGpuP2PCapsIndex_t: NVML_P2P_CAPS_INDEX_NVLINK
constexpr int kP2pStatusOk = 0;                // nvmlGpuP2PStatus_t
constexpr unsigned char kFabricCompleted = 3;  // NVML_GPU_FABRIC_STATE_COMPLETED

struct MemoryInfo {
  unsigned long long total, free, used;
};
struct PciInfo {
  char legacy_bus_id[16];
  unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
  char bus_id[32];
};
struct FabricInfo {
  unsigned char cluster_uuid[16];
  int status;
  unsigned clique_id;
  unsigned char state;
};

class Library {
 public:
  explicit Library(const std::string& name) : library_(name) {}

  [[nodiscard]] const std::string& error() const noexcept { return library_.lack(); }

  /// Calls the function `name`; false where there is none, or it does not succeed.
  template <typename... Arguments>
  [[nodiscard]] bool call(const char* name, Arguments... arguments) const {
    int (*function)(Arguments...) = nullptr;
    library_.find(function, name);
    return function != nullptr && function(arguments...) == kSuccess;
  }

 private:
  LoadedLibrary library_;
};

std::string nvml_read_text(const Library& nvml, const char* name, NvmlDevice device) {
  std::array<char, kTextBytes> text = {};
  if (!nvml.call(name, device, text.data(), kTextBytes)) return {};
  text.back() = '\0';
  return text.data();
}

std::int32_t read_numa_node(const std::string& pci_address) {
  std::ifstream file("/sys/bus/pci/devices/" + pci_address + "/numa_node");
  std::int32_t node = -1;
  return file >> node ? node : -1;
}

/// A machine with an NVLink switch of its own is a fabric, too, whose cluster is zero: no other host is in it.
void read_fabric(const Library& nvml, NvmlDevice device, GpuProbe& gpu) {
  FabricInfo fabric = {};
  if (!nvml.call("nvmlDeviceGetGpuFabricInfo", device, &fabric)) return;
  if (fabric.state != kFabricCompleted || fabric.status != kSuccess) return;
  if (std::all_of(std::cbegin(fabric.cluster_uuid), std::cend(fabric.cluster_uuid),
                  [](unsigned char byte) { return byte == 0; })) {
    return;
  }
  for (const unsigned char byte : fabric.cluster_uuid) gpu.fabric_cluster += fmt::format("{:02x}", byte);
  gpu.fabric_clique = fabric.clique_id;
}

std::vector<NvmlDevice> list_devices(const Library& nvml) {
  unsigned count = 0;
  std::vector<NvmlDevice> devices;
  if (!nvml.call("nvmlDeviceGetCount_v2", &count)) return devices;
  for (unsigned index = 0; index < count; ++index) {
    NvmlDevice device = nullptr;
    if (nvml.call("nvmlDeviceGetHandleByIndex_v2", index, &device)) devices.push_back(device);
  }
  return devices;
}

/// Empty where the library answers.
std::string start(const Library& nvml, const std::string& name) {
  if (!nvml.error().empty()) return fmt::format("no NVIDIA driver: {}", nvml.error());
  if (nvml.call("nvmlInit_v2")) return {};
  return fmt::format("{} is there, but does not start: no GPU, or a driver of another version", name);
}

bool has_entries(const std::string& folder) {
  std::error_code error;
  const std::filesystem::directory_iterator entries(folder, error);
  return !error && entries != std::filesystem::directory_iterator();
}

/// Why these GPUs are not in one fabric of several hosts; empty where they are.
std::string lack_of_fabric(const std::vector<GpuProbe>& gpus) {
  if (gpus.empty()) return "no GPU was found";
  const GpuProbe& first = gpus.front();
  if (first.fabric_cluster.empty()) return "its GPUs are in no NVLink fabric of several hosts";
  for (const GpuProbe& gpu : gpus) {
    if (gpu.fabric_cluster == first.fabric_cluster && gpu.fabric_clique == first.fabric_clique) continue;
    return fmt::format("its GPUs are in several NVLink fabrics: {}:{} and {}:{}", first.fabric_cluster,
                       first.fabric_clique, gpu.fabric_cluster, gpu.fabric_clique);
  }
  return {};
}

GpuProbe probe_gpu(const Library& nvml, NvmlDevice device) {
  GpuProbe gpu;
  gpu.name = nvml_read_text(nvml, "nvmlDeviceGetName", device);
  gpu.uuid = nvml_read_text(nvml, "nvmlDeviceGetUUID", device);
  MemoryInfo memory = {};
  if (nvml.call("nvmlDeviceGetMemoryInfo", device, &memory)) {
    gpu.memory_bytes = static_cast<std::int64_t>(memory.total);
    gpu.free_memory_bytes = static_cast<std::int64_t>(memory.free);
  }
  int major = 0;
  int minor = 0;
  if (nvml.call("nvmlDeviceGetCudaComputeCapability", device, &major, &minor))
    gpu.architecture = fmt::format("sm_{}{}", major, minor);
  PciInfo pci = {};
  if (nvml.call("nvmlDeviceGetPciInfo_v3", device, &pci)) {
    // sysfs writes four digits of the domain where NVML writes eight.
    gpu.pci_address = fmt::format("{:04x}:{:02x}:{:02x}.0", pci.domain, pci.bus, pci.device);
    gpu.numa_node = read_numa_node(gpu.pci_address);
  }
  for (unsigned link = 0; link < kMaxLinks; ++link) {
    int active = 0;
    if (nvml.call("nvmlDeviceGetNvLinkState", device, link, &active) && active != 0) ++gpu.num_active_nvlinks;
  }
  read_fabric(nvml, device, gpu);
  return gpu;
}

void probe_peers(const Library& nvml, const std::vector<NvmlDevice>& devices, std::vector<GpuProbe>& gpus) {
  for (std::size_t from = 0; from < devices.size(); ++from) {
    for (std::size_t to = 0; to < devices.size(); ++to) {
      int status = -1;
      if (from == to || !nvml.call("nvmlDeviceGetP2PStatus", devices[from], devices[to], kP2pNvlink, &status)) continue;
      if (status == kP2pStatusOk) gpus[from].nvlink_peers.push_back(static_cast<std::int32_t>(to));
    }
  }
}

}  // namespace

NvmlProbe probe_nvml(const std::string& library) {
  NvmlProbe probe;
  const Library nvml(library);
  probe.missing = start(nvml, library);
  if (!probe.missing.empty()) return probe;
  std::array<char, kTextBytes> version = {};
  if (nvml.call("nvmlSystemGetDriverVersion", version.data(), kTextBytes)) probe.driver_version = version.data();
  int cuda = 0;
  if (nvml.call("nvmlSystemGetCudaDriverVersion_v2", &cuda))
    probe.cuda_version = fmt::format("{}.{}", cuda / 1000, cuda % 1000 / 10);
  const std::vector<NvmlDevice> devices = list_devices(nvml);
  for (const NvmlDevice device : devices) probe.gpus.push_back(probe_gpu(nvml, device));
  probe_peers(nvml, devices, probe.gpus);
  static_cast<void>(nvml.call("nvmlShutdown"));
  return probe;
}

NvlinkFabric probe_nvlink_fabric(const std::string& library, const std::string& channels) {
  const Library nvml(library);
  NvlinkFabric probe{.fabric = {}, .lack = start(nvml, library)};
  if (!probe.lack.empty()) return probe;
  std::vector<GpuProbe> gpus;
  for (const NvmlDevice device : list_devices(nvml)) read_fabric(nvml, device, gpus.emplace_back());
  static_cast<void>(nvml.call("nvmlShutdown"));
  probe.lack = lack_of_fabric(gpus);
  if (!probe.lack.empty()) return probe;
  const std::string fabric = fmt::format("{}:{}", gpus.front().fabric_cluster, gpus.front().fabric_clique);
  if (!has_entries(channels)) {
    probe.lack = fmt::format(
        "its GPUs are in the NVLink fabric {}, but {} has no channel: configure nvidia-imex to share "
        "memory over it",
        fabric, channels);
    return probe;
  }
  probe.fabric = fabric;
  return probe;
}

std::vector<std::vector<std::int32_t>> nvlink_groups(const NvmlProbe& probe) {
  std::vector<std::vector<std::int32_t>> groups;
  std::vector<bool> placed(probe.gpus.size(), false);
  for (std::size_t first = 0; first < probe.gpus.size(); ++first) {
    if (placed[first]) continue;
    std::vector<std::int32_t> group = {static_cast<std::int32_t>(first)};
    placed[first] = true;
    for (std::size_t idx = 0; idx < group.size(); ++idx) {
      for (const std::int32_t peer : probe.gpus[static_cast<std::size_t>(group[idx])].nvlink_peers) {
        const auto at = static_cast<std::size_t>(peer);
        if (at >= placed.size() || placed[at]) continue;
        placed[at] = true;
        group.push_back(peer);
      }
    }
    std::sort(group.begin(), group.end());
    groups.push_back(std::move(group));
  }
  return groups;
}

std::string preset_of(const NvmlProbe& probe) {
  struct Name {
    std::string_view part;
    std::string_view preset;
  };
  // Longer names first: "GB200" holds "B200", "H200" begins with "H20".
  constexpr std::array kNames = {Name{"gb300", "gb300-nvl72"},
                                 Name{"gb200", "gb200-nvl72"},
                                 Name{"h200", "h200-hgx"},
                                 Name{"h100", "h100-hgx"},
                                 Name{"h800", "h100-hgx"},
                                 Name{"b300", "b300"},
                                 Name{"b200", "b200"},
                                 Name{"a100", "a100"},
                                 Name{"a800", "a100"},
                                 Name{"h20", "h20"},
                                 Name{"rtx pro 6000", "rtx-pro-6000"}};
  if (probe.gpus.empty()) return "unknown";
  const std::string name = to_lower(probe.gpus.front().name);
  for (const Name& one : kNames) {
    if (name.find(one.part) != std::string::npos) return std::string(one.preset);
  }
  return "unknown";
}

}  // namespace epistle
