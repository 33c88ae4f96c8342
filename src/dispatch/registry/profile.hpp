// What a profile consists of: settings, and the key that says what they are for.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include "epistle/config.hpp"
#include "epistle/profile.hpp"

namespace epistle {

/// What a dispatcher is made with, of both devices.
struct ProfileSettings {
  std::string dispatcher;
  HostOptions host = {};
  CudaOptions cuda = {};
  std::int32_t num_buffers = 1;
};

/// As --mover of the command takes it.
[[nodiscard]] std::string_view to_string(CudaMover mover) noexcept;

/// Version, device and topology of this machine, group, shape and type.
[[nodiscard]] nlohmann::ordered_json profile_key(const ProfileUse& use);
/// Those of the device.
[[nodiscard]] nlohmann::ordered_json settings_json(const ProfileSettings& settings, Device device);

/// A profile that was read, before anybody asked whether it fits.
struct StoredProfile {
  std::string path;
  nlohmann::ordered_json key;
  Device device = Device::kHost;
  ProfileSettings settings;
};
[[nodiscard]] StoredProfile read_profile(const std::string& path);

/// Throws kShapeMismatch where it does not fit, with the first difference.
void check_profile(const StoredProfile& profile, const ProfileUse& use);

}  // namespace epistle
