// Environment settings. One registry knows every EPISTLE_* variable that changes behaviour: its default, the values it
// takes, what it does, its current value and where that came from. `epistle settings` prints it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace epistle {

/// The most severe level comes first: a message is written when its level is not above the configured one.
enum class LogLevel : std::int32_t { kOff, kError, kWarn, kInfo, kDebug };

[[nodiscard]] std::string_view to_string(LogLevel level) noexcept;

/// How GPUs reach each other's memory. kAuto takes kFd where every device can, kIpc elsewhere.
enum class CudaHeapChoice : std::int32_t { kAuto, kFd, kFabric, kIpc };

[[nodiscard]] std::string_view to_string(CudaHeapChoice choice) noexcept;

/// What EPISTLE_DOMAIN_LINK asks for: where the domains of a host are only declared, auto takes mapped memory.
enum class DomainLinkChoice : std::int32_t { kAuto, kFabric };

[[nodiscard]] std::string_view to_string(DomainLinkChoice choice) noexcept;

/// How rows of GPUs get on links: kAuto registers GPU memory with libfabric where that can be, and stages rows through
/// pinned host memory elsewhere.
enum class GpuLinkChoice : std::int32_t { kAuto, kStaged, kDirect };

[[nodiscard]] std::string_view to_string(GpuLinkChoice choice) noexcept;

/// A numeric setting whose value is left to the code that uses it.
inline constexpr std::int64_t kAutomatic = -1;

enum class SettingOrigin : std::int32_t { kDefault, kEnvironment };

[[nodiscard]] std::string_view to_string(SettingOrigin origin) noexcept;

/// One row of the registry, as text.
struct SettingInfo {
  std::string_view name;
  std::string_view default_value;
  std::string accepted;
  std::string_view summary;
  std::string value;
  SettingOrigin origin = SettingOrigin::kDefault;
};

struct SettingValues {
  std::int64_t timeout_ms = 0;
  std::int64_t spin_us = 0;
  std::int64_t stream_bytes = 0;
  std::int64_t domain_size = 0;
  LogLevel log_level = LogLevel::kWarn;
  std::string simd;
  CudaHeapChoice cuda_heap = CudaHeapChoice::kAuto;
  DomainLinkChoice domain_link = DomainLinkChoice::kAuto;
  std::string nccl_library;
  std::string network_interface;
  std::int64_t network_port = kAutomatic;
  std::string host_id;
  std::string job_secret;
  std::string fabric_provider;
  std::string fabric_nics;
  std::string fabric_library;
  GpuLinkChoice gpu_link = GpuLinkChoice::kAuto;
  std::string nvlink_fabric;
};

/// A snapshot of all settings; never changes once made.
class Settings {
 public:
  /// Reads the environment. Throws kInvalidArgument that names the variable, its value and the values it takes.
  Settings();

  /// Longest wait for another rank in any one step.
  [[nodiscard]] std::int64_t timeout_ms() const noexcept { return values_.timeout_ms; }
  /// How long a waiting rank spins before it sleeps; kAutomatic leaves it to the barrier.
  [[nodiscard]] std::int64_t spin_us() const noexcept { return values_.spin_us; }
  /// Smallest transfer that uses non-temporal stores; kAutomatic leaves it to the copy routine.
  [[nodiscard]] std::int64_t stream_bytes() const noexcept { return values_.stream_bytes; }
  /// Ranks of a domain; 0 leaves it to what is found.
  [[nodiscard]] std::int64_t domain_size() const noexcept { return values_.domain_size; }
  [[nodiscard]] LogLevel log_level() const noexcept { return values_.log_level; }
  /// "auto", or the name of the best SIMD target that may be used.
  [[nodiscard]] const std::string& simd() const noexcept { return values_.simd; }
  [[nodiscard]] CudaHeapChoice cuda_heap() const noexcept { return values_.cuda_heap; }
  [[nodiscard]] DomainLinkChoice domain_link() const noexcept { return values_.domain_link; }
  /// What dlopen is given when a dispatcher needs NCCL.
  [[nodiscard]] const std::string& nccl_library() const noexcept { return values_.nccl_library; }
  /// The interface that a group of several hosts listens on; empty = the one towards rank 0.
  [[nodiscard]] const std::string& network_interface() const noexcept { return values_.network_interface; }
  /// Where rank 0 of a group of several hosts listens; kAutomatic = behind MASTER_PORT.
  [[nodiscard]] std::int64_t network_port() const noexcept { return values_.network_port; }
  /// What tells this host from others; empty = what the kernel tells.
  [[nodiscard]] const std::string& host_id() const noexcept { return values_.host_id; }
  /// What ranks of several hosts know each other by; empty = the job's name.
  [[nodiscard]] const std::string& job_secret() const noexcept { return values_.job_secret; }
  /// The provider of libfabric that rows travel by; empty = libfabric's choice.
  [[nodiscard]] const std::string& fabric_provider() const noexcept { return values_.fabric_provider; }
  /// Names of the network cards that rows travel by, separated by commas; empty = that of the interface, or all.
  [[nodiscard]] const std::string& fabric_nics() const noexcept { return values_.fabric_nics; }

  /// What dlopen is given when rows are to travel by libfabric.
  [[nodiscard]] const std::string& fabric_library() const noexcept { return values_.fabric_library; }
  [[nodiscard]] GpuLinkChoice gpu_link() const noexcept { return values_.gpu_link; }
  /// Hosts that give the same text have GPUs that reach each other; "auto" = what NVML tells, "none" = none.
  [[nodiscard]] const std::string& nvlink_fabric() const noexcept { return values_.nvlink_fabric; }

  /// Every setting, in the order of the registry.
  [[nodiscard]] const std::vector<SettingInfo>& infos() const noexcept { return infos_; }

 private:
  SettingValues values_;
  std::vector<SettingInfo> infos_;
};

/// The settings of this process, read at the first call. Thread-safe. Throws as Settings() does, at every call until
/// the environment is mended.
[[nodiscard]] const Settings& settings();

/// Reads the environment again. For tests, with no other thread running: references handed out before stay valid but
/// keep the old values.
void reload_settings_for_testing();

}  // namespace epistle
