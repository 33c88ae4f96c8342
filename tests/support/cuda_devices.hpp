// Which GPUs there are, and why a test is skipped where there are too few.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <string_view>

#include <cuda_runtime_api.h>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "epistle/cuda.hpp"
#include "epistle/dispatcher_info.hpp"

#include "support/scenario.hpp"

namespace epistle::testing {

// Work of streams that share a hardware queue runs in order: a rank's kernel could wait for one that stands behind it.
// The default is 8 queues, and 32 the most that CUDA gives; it is read when CUDA starts.
inline const int kQueuesRaised = ::setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", /*overwrite=*/0);

/// Why there are not `num_gpus` GPUs; empty where there are.
inline std::string missing_gpus(int num_gpus) {
  const CudaSupport support = cuda_support();
  if (support.num_devices >= num_gpus) return {};
  if (support.num_devices == 0) return "no GPU: " + support.reason;
  return fmt::format("needs {} GPUs, {} found", num_gpus, support.num_devices);
}

/// The same without a call of CUDA, for a process that still forks: counts device nodes.
inline std::string missing_gpu_nodes(int num_gpus) {
  int num_found = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/dev")) {
    const std::string name = entry.path().filename().string();
    constexpr std::string_view kPrefix = "nvidia";
    const bool numbered = name.size() > kPrefix.size() && name.starts_with(kPrefix) &&
                          name.find_first_not_of("0123456789", kPrefix.size()) == std::string::npos;
    if (numbered) ++num_found;
  }
  if (const char* const visible = std::getenv("CUDA_VISIBLE_DEVICES"); visible != nullptr) {
    const std::string_view list = visible;
    const auto num_visible = list.empty() ? 0 : static_cast<int>(std::count(list.begin(), list.end(), ',')) + 1;
    num_found = std::min(num_found, num_visible);
  }
  if (num_found >= num_gpus) return {};
  return fmt::format("needs {} GPUs, {} found in /dev", num_gpus, num_found);
}

inline int device_attribute(cudaDeviceAttr attribute) {
  int value = 0;
  return cudaDeviceGetAttribute(&value, attribute, 0) == cudaSuccess ? value : 0;
}

/// Why this build cannot make a dispatcher on CUDA; empty where it can. Calls nothing of CUDA: asked before a fork,
/// too.
inline std::string_view missing_from_build(std::string_view dispatcher) {
  return find_dispatcher(dispatcher, Device::kCuda).capabilities().missing;
}

/// Why a dispatcher cannot play `scenario` on CUDA; empty where it can.
inline std::string cannot_play(std::string_view dispatcher, const Scenario& scenario) {
  const DispatcherInfo& info = find_dispatcher(dispatcher, Device::kCuda);
  if (const auto reason = info.cannot_serve(scenario.config, scenario.num_ranks(), scenario.domain_size))
    return *reason;
  if (scenario.counted >= 0.0 && !info.capabilities().device_token_count) {
    return fmt::format("{} does not read the number of tokens when a call runs", dispatcher);
  }
  return {};
}

/// Skips every test of a suite where there is no GPU.
template <typename Base = ::testing::Test>
class OnGpu : public Base {
 protected:
  void SetUp() override {
    if (const std::string reason = missing_gpus(1); !reason.empty()) GTEST_SKIP() << reason;
  }
};

}  // namespace epistle::testing
