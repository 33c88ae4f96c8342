// Settings that `epistle tune` found for one machine and one shape, used by a program.
#pragma once

#include <cstdint>
#include <string>

#include "epistle/config.hpp"
#include "epistle/export.hpp"
#include "epistle/types.hpp"

namespace epistle {

/// What a profile is to be used for.
struct ProfileUse {
  DispatcherConfig config = {};
  int num_ranks = 1;
  GroupKind group = GroupKind::kThreads;
  Device device = Device::kHost;
};

/// What a dispatcher is made with: `Dispatcher(group, tuned.dispatcher, tuned.config, tuned.options)`.
struct TunedDispatcher {
  std::string dispatcher;
  DispatcherConfig config;  ///< the one that was given, with the number of buffers of the profile
  DeviceOptions options;
};

/// Reads a profile. Throws kNotFound, kCorruptInput that names the field, and kShapeMismatch where the profile is for
/// another version, machine, group or shape, with the first difference. On CUDA this starts the runtime.
[[nodiscard]] EPISTLE_API TunedDispatcher load_profile(const std::string& path, const ProfileUse& use);

}  // namespace epistle
