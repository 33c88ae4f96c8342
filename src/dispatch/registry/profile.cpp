#include "dispatch/registry/profile.hpp"

#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <utility>

#include <fmt/format.h>

#if EPISTLE_HAS_CUDA
#include <cuda_runtime_api.h>
#endif

#include "epistle/cuda.hpp"
#include "epistle/dispatcher_info.hpp"
#include "epistle/error.hpp"
#include "epistle/version.hpp"

#include "core/json_field.hpp"
#include "dispatch/call/resolved_config.hpp"
#include "topology/machine.hpp"

#if EPISTLE_HAS_CUDA
#include "gpu/cuda_error.hpp"
#endif

namespace epistle {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kTool = "epistle tune";
constexpr std::int64_t kMaxWorkers = 1024;
constexpr std::int64_t kMaxSms = 1024;
constexpr std::int64_t kMaxBuffers = 8;

constexpr std::array<std::pair<std::string_view, CudaMover>, 4> kMovers = {{{"auto", CudaMover::kAuto},
                                                                            {"vector", CudaMover::kVector},
                                                                            {"bulk", CudaMover::kBulk},
                                                                            {"copy-engines", CudaMover::kCopyEngines}}};

Json topology_json(Device device) {
  if (device == Device::kHost) {
    const MachineInfo& machine = machine_info();
    return {{"cpu", machine.cpu_model},
            {"cores", machine.num_cores},
            {"numa_nodes", machine.num_numa_nodes},
            {"usable_processing_units", machine.num_usable_processing_units},
            {"last_level_cache_bytes", machine.last_level_cache_bytes}};
  }
  Json topology = {{"gpus", cuda_support().num_devices}};
#if EPISTLE_HAS_CUDA
  cudaDeviceProp properties{};
  cuda::check_cuda(cudaGetDeviceProperties(&properties, 0), "ask for the properties of the GPU");
  topology["gpu"] = properties.name;
  topology["sms"] = properties.multiProcessorCount;
#endif
  return topology;
}

/// A difference between what a profile is for and what it is used for, or nothing.
std::optional<std::string> difference(const std::string& path, const Json& stored, const Json& wanted) {
  if (!wanted.is_object()) {
    if (stored == wanted) return std::nullopt;
    const auto text = [](const Json& value) { return value.dump(-1, ' ', true, Json::error_handler_t::replace); };
    return fmt::format("its {} is {}, and here it is {}", path, text(stored).substr(0, 80), text(wanted));
  }
  for (const auto& [name, value] : wanted.items()) {
    const std::string inner = path.empty() ? name : fmt::format("{}.{}", path, name);
    if (!stored.is_object() || !stored.contains(name)) return fmt::format("it does not say its {}", inner);
    if (auto found = difference(inner, stored.at(name), value)) return found;
  }
  return std::nullopt;
}

}  // namespace

std::string_view to_string(CudaMover mover) noexcept {
  for (const auto& [name, value] : kMovers) {
    if (value == mover) return name;
  }
  return "unknown";
}

Json profile_key(const ProfileUse& use) {
  const ResolvedConfig config = resolve_config(use.config, use.num_ranks);
  const Json wire = !config.quantises ? Json("as-given")
                                      : Json{{"scales", static_cast<int>(config.quantised.scales)},
                                             {"powers_of_two", config.quantised.powers_of_two},
                                             {"order", static_cast<int>(config.quantised.order)}};
  return {{"version", EPISTLE_VERSION_STRING},
          {"device", to_string(use.device)},
          {"topology", topology_json(use.device)},
          {"ranks", use.num_ranks},
          {"group", to_string(use.group)},
          {"shape",
           {{"hidden", config.hidden},
            {"num_experts", config.num_experts},
            {"top_k", config.top_k},
            {"max_tokens", config.max_tokens},
            {"layout", to_string(config.layout)},
            {"alignment", config.alignment},
            {"sizing", to_string(config.sizing)},
            {"capacity_rows", config.capacity_rows}}},
          {"dtype", to_string(config.dtype)},
          {"wire", wire},
          {"combine_dtype", to_string(config.combine_dtype)},
          {"combine", to_string(config.order)}};
}

Json settings_json(const ProfileSettings& settings, Device device) {
  Json json = {{"dispatcher", settings.dispatcher}};
  if (device == Device::kHost) {
    json["workers"] = settings.host.num_workers;
    json["stream_bytes"] = settings.host.stream_bytes;
  } else {
    json["sms"] = settings.cuda.num_sms;
    json["mover"] = to_string(settings.cuda.mover);
  }
  json["num_buffers"] = settings.num_buffers;
  return json;
}

StoredProfile read_profile(const std::string& path) {
  const Json json = read_json_file(path);
  const JsonField document(json, path);
  if (const JsonField tool = document.at("tool"); tool.text() != kTool) {
    tool.fail(fmt::format("is '{}', not '{}': it is no profile", tool.text().substr(0, 40), kTool));
  }
  StoredProfile profile{.path = path, .key = document.at("key").value(), .settings = {}};
  const JsonField device = document.at("key").at("device");
  const std::string device_name = device.text();
  if (device_name == to_string(Device::kCuda)) {
    profile.device = Device::kCuda;
  } else if (device_name != to_string(Device::kHost)) {
    device.fail("is neither 'host' nor 'cuda'");
  }
  const JsonField settings = document.at("settings");
  const JsonField dispatcher = settings.at("dispatcher");
  profile.settings.dispatcher = dispatcher.text();
  const auto& known = dispatchers();
  const bool is_known = std::any_of(known.begin(), known.end(), [&](const DispatcherInfo* info) {
    return info->device() == profile.device && info->name() == profile.settings.dispatcher;
  });
  if (!is_known) dispatcher.fail(fmt::format("names no dispatcher of the device {}", device_name));
  profile.settings.num_buffers = static_cast<std::int32_t>(settings.at("num_buffers").integer({1, kMaxBuffers}));
  if (profile.device == Device::kHost) {
    profile.settings.host = {
        .num_workers = static_cast<std::int32_t>(settings.at("workers").integer({1, kMaxWorkers})),
        .stream_bytes = settings.at("stream_bytes").integer({-1, std::numeric_limits<std::int64_t>::max()})};
    return profile;
  }
  profile.settings.cuda.num_sms = static_cast<int>(settings.at("sms").integer({0, kMaxSms}));
  const JsonField mover = settings.at("mover");
  const std::string mover_name = mover.text();
  const auto* const found =
      std::find_if(kMovers.begin(), kMovers.end(), [&](const auto& entry) { return entry.first == mover_name; });
  if (found == kMovers.end()) mover.fail("is none of auto, vector, bulk, copy-engines");
  profile.settings.cuda.mover = found->second;
  return profile;
}

void check_profile(const StoredProfile& profile, const ProfileUse& use) {
  const auto found = difference("", profile.key, profile_key(use));
  if (!found) return;
  throw Error(
      ErrorCode::kShapeMismatch,
      fmt::format("{}: the profile is for something else: {}; make one with epistle tune", profile.path, *found));
}

TunedDispatcher load_profile(const std::string& path, const ProfileUse& use) {
  const StoredProfile profile = read_profile(path);
  check_profile(profile, use);
  TunedDispatcher tuned{.dispatcher = profile.settings.dispatcher, .config = use.config, .options = {}};
  tuned.config.num_buffers = profile.settings.num_buffers;
  if (use.device == Device::kHost) {
    tuned.options = profile.settings.host;
  } else {
    tuned.options = profile.settings.cuda;
  }
  return tuned;
}

}  // namespace epistle
