// The dispatchers that a test is run for: those of the registry, so that a new one is tested as soon as it is entered.
#pragma once

#include <string>
#include <vector>

#include "epistle/dispatcher_info.hpp"

namespace epistle::testing {

/// All of a device, those included that the test program has registered before GoogleTest was started.
inline std::vector<std::string> dispatcher_names(Device device = Device::kHost) {
  std::vector<std::string> names;
  for (const DispatcherInfo* info : dispatchers()) {
    if (info->device() == device) names.emplace_back(info->name());
  }
  return names;
}

/// Those that are made to be fast: `reference` is made to be obvious, and promises neither speed nor memory.
inline std::vector<std::string> fast_dispatcher_names(Device device = Device::kHost) {
  std::vector<std::string> names = dispatcher_names(device);
  std::erase(names, "reference");
  return names;
}

/// Those of the CUDA device that virtual ranks can use: kernels of theirs wait for each other.
inline std::vector<std::string> one_gpu_dispatcher_names() {
  std::vector<std::string> names;
  for (const DispatcherInfo* info : dispatchers()) {
    if (info->device() == Device::kCuda && !info->capabilities().one_rank_per_gpu) names.emplace_back(info->name());
  }
  return names;
}

}  // namespace epistle::testing
