#include "core/settings.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cctype>
#include <charconv>
#include <cstdlib>
#include <limits>
#include <memory>
#include <mutex>
#include <variant>

#include <fmt/format.h>

#include "epistle/error.hpp"

namespace epistle {
namespace {

constexpr std::int64_t kDayInMs = 24 * 60 * 60 * 1000;
constexpr std::int64_t kDayInUs = kDayInMs * 1000;
// No group has as many ranks; what does not fit one is found when it is formed.
constexpr std::int64_t kMaxDomainSize = 1 << 20;
constexpr std::int64_t kMaxPort = 65535;
constexpr const char* kHiddenValue = "(hidden)";
constexpr std::string_view kAutomaticTarget = "auto";

struct IntegerKind {
  std::int64_t SettingValues::*member;
  std::int64_t min;
  std::int64_t max;
  bool has_automatic;
};
struct LogLevelKind {};
struct SimdTargetKind {};
struct CudaHeapKind {};
struct DomainLinkKind {};
struct GpuLinkKind {};
struct TextKind {
  std::string SettingValues::*member;
  std::string_view accepted;
};
/// A text that is not shown.
struct SecretKind {
  std::string SettingValues::*member;
};

struct SettingDefinition {
  std::string_view name;
  std::string_view default_value;
  std::string_view summary;
  std::variant<IntegerKind, LogLevelKind, SimdTargetKind, CudaHeapKind, DomainLinkKind, GpuLinkKind, TextKind,
               SecretKind>
      kind;
};

constexpr std::array<SettingDefinition, 18> kDefinitions = {{
    {"EPISTLE_TIMEOUT_MS", "30000", "longest wait for another rank in any one step, in milliseconds",
     IntegerKind{&SettingValues::timeout_ms, 1, kDayInMs, false}},
    {"EPISTLE_SPIN_US", "-1", "how long a waiting rank spins before it sleeps, in microseconds; -1 = automatic",
     IntegerKind{&SettingValues::spin_us, 0, kDayInUs, true}},
    {"EPISTLE_LOG", "warn", "least severe messages that go to stderr", LogLevelKind{}},
    {"EPISTLE_STREAM_BYTES", "-1", "transfers of at least this many bytes use non-temporal stores; -1 = automatic",
     IntegerKind{&SettingValues::stream_bytes, 0, std::numeric_limits<std::int64_t>::max(), true}},
    {"EPISTLE_DOMAIN_SIZE", "0", "ranks that reach each other by load and store; 0 = what is found",
     IntegerKind{&SettingValues::domain_size, 0, kMaxDomainSize, false}},
    {"EPISTLE_SIMD", kAutomaticTarget, "limits SIMD targets to this one and narrower ones; auto = the best there is",
     SimdTargetKind{}},
    {"EPISTLE_CUDA_HEAP", "auto", "how GPUs share memory: file descriptors, fabric handles or CUDA IPC",
     CudaHeapKind{}},
    {"EPISTLE_NCCL_LIBRARY", "libnccl.so.2", "the NCCL library that the CUDA dispatcher alltoall loads",
     TextKind{&SettingValues::nccl_library, "a path, or a name that the dynamic loader finds"}},
    {"EPISTLE_INTERFACE", "", "what a group of several hosts listens on; empty = the interface towards rank 0",
     TextKind{&SettingValues::network_interface, "the name of a network interface"}},
    {"EPISTLE_PORT", "-1",
     "where rank 0 of a group of several hosts listens; -1 = the first free one of 16 behind MASTER_PORT",
     IntegerKind{&SettingValues::network_port, 1, kMaxPort, true}},
    {"EPISTLE_HOST_ID", "", "ranks that give the same share memory; empty = the boot and the network namespace",
     TextKind{&SettingValues::host_id, "any text"}},
    {"EPISTLE_JOB_SECRET", "", "what ranks of several hosts know each other by; empty = the name of the job",
     SecretKind{&SettingValues::job_secret}},
    {"EPISTLE_FABRIC_PROVIDER", "", "the provider of libfabric that rows travel by; empty = libfabric's choice",
     TextKind{&SettingValues::fabric_provider, "tcp, verbs, efa, shm or another provider of libfabric"}},
    {"EPISTLE_FABRIC_NICS", "",
     "network cards that rows travel by, in turn for the ranks of a host; empty = that of EPISTLE_INTERFACE, or all",
     TextKind{&SettingValues::fabric_nics, "names or addresses of cards, separated by commas"}},
    {"EPISTLE_DOMAIN_LINK", "auto",
     "what rows cross domains by: auto = mapped memory on one host, libfabric between hosts; fabric = libfabric always",
     DomainLinkKind{}},
    {"EPISTLE_FABRIC_LIBRARY", "libfabric.so.1", "the libfabric that rows travel by",
     TextKind{&SettingValues::fabric_library, "a path, or a name that the dynamic loader finds"}},
    {"EPISTLE_FABRIC_GPU_MEMORY", "auto",
     "how rows of GPUs get on links: auto = from registered GPU memory where libfabric takes it, else staged",
     GpuLinkKind{}},
    {"EPISTLE_NVLINK_FABRIC", "auto", "hosts whose GPUs share memory over NVLink; auto = what NVML tells",
     TextKind{&SettingValues::nvlink_fabric, "auto, none, or a text that the hosts of one fabric have in common"}},
}};

constexpr std::array<LogLevel, 5> kLogLevels = {LogLevel::kOff, LogLevel::kError, LogLevel::kWarn, LogLevel::kInfo,
                                                LogLevel::kDebug};
constexpr std::array<CudaHeapChoice, 4> kCudaHeapChoices = {CudaHeapChoice::kAuto, CudaHeapChoice::kFd,
                                                            CudaHeapChoice::kFabric, CudaHeapChoice::kIpc};
constexpr std::array<DomainLinkChoice, 2> kDomainLinkChoices = {DomainLinkChoice::kAuto, DomainLinkChoice::kFabric};
constexpr std::array<GpuLinkChoice, 3> kGpuLinkChoices = {GpuLinkChoice::kAuto, GpuLinkChoice::kStaged,
                                                          GpuLinkChoice::kDirect};

template <typename Words>
std::string list_words(const Words& words) {
  std::string text;
  for (const auto word : words) text += fmt::format("{}{}", text.empty() ? "" : ", ", to_string(word));
  return text;
}

/// False where `text` is none of `words`.
template <typename Words, typename Word>
bool assign_word(const Words& words, std::string_view text, Word& value) {
  const auto* const found =
      std::find_if(words.begin(), words.end(), [&](Word word) { return to_string(word) == text; });
  if (found == words.end()) return false;
  value = *found;
  return true;
}

// What a kind accepts, and how text becomes a value. Both stand together so that the message and the check agree.
struct Describe {
  std::string operator()(const IntegerKind& kind) const {
    return fmt::format("{}{} to {}", kind.has_automatic ? "-1 or " : "", kind.min, kind.max);
  }
  std::string operator()(LogLevelKind) const { return list_words(kLogLevels); }
  std::string operator()(CudaHeapKind) const { return list_words(kCudaHeapChoices); }
  std::string operator()(DomainLinkKind) const { return list_words(kDomainLinkChoices); }
  std::string operator()(GpuLinkKind) const { return list_words(kGpuLinkChoices); }
  std::string operator()(const TextKind& kind) const { return std::string(kind.accepted); }
  std::string operator()(const SecretKind&) const { return "any text; it is not shown"; }
  std::string operator()(SimdTargetKind) const { return "auto, or a target name such as AVX2, SSE4 or NEON"; }
};

struct Assign {
  SettingValues& values;
  std::string_view text;

  bool operator()(const IntegerKind& kind) const {
    std::int64_t value = 0;
    const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (status != std::errc{} || end != text.data() + text.size()) return false;
    const bool automatic = kind.has_automatic && value == kAutomatic;
    if (!automatic && (value < kind.min || value > kind.max)) return false;
    values.*kind.member = value;
    return true;
  }
  bool operator()(LogLevelKind) const { return assign_word(kLogLevels, text, values.log_level); }
  bool operator()(CudaHeapKind) const { return assign_word(kCudaHeapChoices, text, values.cuda_heap); }
  bool operator()(DomainLinkKind) const { return assign_word(kDomainLinkChoices, text, values.domain_link); }
  bool operator()(GpuLinkKind) const { return assign_word(kGpuLinkChoices, text, values.gpu_link); }
  bool operator()(const TextKind& kind) const {
    values.*kind.member = text;
    return true;
  }
  bool operator()(const SecretKind& kind) const {
    values.*kind.member = text;
    return true;
  }
  // Which targets exist depends on the SIMD library and the machine; only the form of a name is checked here.
  bool operator()(SimdTargetKind) const {
    const auto is_name_char = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; };
    if (text.empty() || !std::all_of(text.begin(), text.end(), is_name_char)) return false;
    values.simd = text;
    return true;
  }
};

struct Snapshots {
  std::mutex mutex;
  std::atomic<const Settings*> current{nullptr};
  // Replaced snapshots are kept: settings() hands out references without a lock.
  std::vector<std::unique_ptr<const Settings>> all;
};

Snapshots& snapshots() {
  static Snapshots instance;
  return instance;
}

}  // namespace

std::string_view to_string(LogLevel level) noexcept {
  switch (level) {
    case LogLevel::kOff:
      return "off";
    case LogLevel::kError:
      return "error";
    case LogLevel::kWarn:
      return "warn";
    case LogLevel::kInfo:
      return "info";
    case LogLevel::kDebug:
      return "debug";
  }
  return "unknown";
}

std::string_view to_string(CudaHeapChoice choice) noexcept {
  switch (choice) {
    case CudaHeapChoice::kAuto:
      return "auto";
    case CudaHeapChoice::kFd:
      return "fd";
    case CudaHeapChoice::kFabric:
      return "fabric";
    case CudaHeapChoice::kIpc:
      return "ipc";
  }
  return "unknown";
}

std::string_view to_string(DomainLinkChoice choice) noexcept {
  return choice == DomainLinkChoice::kFabric ? "fabric" : "auto";
}

std::string_view to_string(GpuLinkChoice choice) noexcept {
  switch (choice) {
    case GpuLinkChoice::kAuto:
      return "auto";
    case GpuLinkChoice::kStaged:
      return "staged";
    case GpuLinkChoice::kDirect:
      return "direct";
  }
  return "unknown";
}

std::string_view to_string(SettingOrigin origin) noexcept {
  return origin == SettingOrigin::kDefault ? "default" : "environment";
}

Settings::Settings() {
  infos_.reserve(kDefinitions.size());
  for (const SettingDefinition& definition : kDefinitions) {
    SettingInfo info{.name = definition.name,
                     .default_value = definition.default_value,
                     .accepted = std::visit(Describe{}, definition.kind),
                     .summary = definition.summary,
                     .value = std::string(definition.default_value),
                     .origin = SettingOrigin::kDefault};
    // An empty variable is the shell's usual way to switch a setting off, so it counts as not set.
    const char* const text = std::getenv(info.name.data());
    if (text != nullptr && *text != '\0') {
      info.value = text;
      info.origin = SettingOrigin::kEnvironment;
    }
    if (!std::visit(Assign{values_, info.value}, definition.kind)) {
      throw Error(ErrorCode::kInvalidArgument,
                  fmt::format("{} is '{}', but must be {}; correct it, or unset it for the default ({})", info.name,
                              info.value, info.accepted, info.default_value));
    }
    if (std::holds_alternative<SecretKind>(definition.kind) && !info.value.empty()) info.value = kHiddenValue;
    infos_.push_back(std::move(info));
  }
}

const Settings& settings() {
  Snapshots& store = snapshots();
  // pairs with the release stores below: the snapshot is complete before its address is seen
  if (const Settings* const current = store.current.load(std::memory_order_acquire)) return *current;
  const std::lock_guard lock(store.mutex);
  if (const Settings* const current = store.current.load(std::memory_order_relaxed)) return *current;
  store.all.push_back(std::make_unique<const Settings>());
  store.current.store(store.all.back().get(), std::memory_order_release);  // pairs with the acquire load above
  return *store.all.back();
}

void reload_settings_for_testing() {
  Snapshots& store = snapshots();
  const std::lock_guard lock(store.mutex);
  store.current.store(nullptr, std::memory_order_release);  // pairs with the acquire load in settings()
}

}  // namespace epistle
