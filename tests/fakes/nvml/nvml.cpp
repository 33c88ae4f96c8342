// The part of NVML that fabrics are found by, with GPUs as EPISTLE_FAKE_GPUS describes them: one "cluster:clique:state"
// for each, separated by commas; the cluster is a byte that all 16 of its UUID have.
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <string>
#include <vector>

namespace {

constexpr int kSuccess = 0;
constexpr int kNotFound = 6;

struct FakeGpu {
  unsigned cluster = 0;
  unsigned clique = 0;
  unsigned state = 0;
};

std::vector<FakeGpu>& gpus() {
  static std::vector<FakeGpu> all;
  return all;
}

struct FabricInfo {
  unsigned char cluster_uuid[16];
  int status;
  unsigned clique_id;
  unsigned char state;
};

}  // namespace

extern "C" {

// NOLINTBEGIN(readability-identifier-naming): NVML's names

int nvmlInit_v2() {
  gpus().clear();
  const char* const described = std::getenv("EPISTLE_FAKE_GPUS");
  std::istringstream text(described != nullptr ? described : "");
  for (std::string one; std::getline(text, one, ',');) {
    std::istringstream fields(one);
    FakeGpu gpu;
    char colon = 0;
    fields >> gpu.cluster >> colon >> gpu.clique >> colon >> gpu.state;
    gpus().push_back(gpu);
  }
  return kSuccess;
}

int nvmlShutdown() { return kSuccess; }

int nvmlDeviceGetCount_v2(unsigned* count) {
  *count = static_cast<unsigned>(gpus().size());
  return kSuccess;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** device) {
  if (index >= gpus().size()) return kNotFound;
  *device = &gpus()[index];
  return kSuccess;
}

int nvmlDeviceGetGpuFabricInfo(void* device, FabricInfo* info) {
  const auto* const gpu = static_cast<const FakeGpu*>(device);
  std::memset(info->cluster_uuid, static_cast<int>(gpu->cluster), sizeof(info->cluster_uuid));
  info->status = kSuccess;
  info->clique_id = gpu->clique;
  info->state = static_cast<unsigned char>(gpu->state);
  return kSuccess;
}

// NOLINTEND(readability-identifier-naming)
}
