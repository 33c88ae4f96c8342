// What there is, what it can do and how much memory it takes: questions that need no GPU and no group.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "epistle/config.hpp"
#include "epistle/export.hpp"
#include "epistle/types.hpp"

namespace epistle {

/// What a dispatcher can do, as data.
struct Capabilities {
  std::vector<OutputLayout> layouts;
  std::vector<DType> inputs;             ///< of dispatch
  std::vector<ScaleFormat> scales;       ///< of quantised inputs
  std::vector<DType> outputs;            ///< of experts: what combine sums
  std::vector<SumOrder> orders;          ///< the first is taken where a configuration names none
  std::vector<ScaleOrder> scale_orders;  ///< of rows that it quantises
  bool exact_sizing = false;
  bool capacity_sizing = false;
  bool quantises = false;           ///< Fp8Blocks on the wire
  bool backward = false;            ///< both backward passes, gradients of the weights included
  bool graph_capture = false;       ///< under capacity sizing
  bool device_token_count = false;  ///< PrepareRequest::num_tokens
  bool late_weights = false;        ///< CombineRequest::weights: for rows of experts in flat order; `auto` takes them
                                    ///< in the calls that it gives to `low_latency`
  bool placement = false;           ///< others than the trivial one
  bool masks = false;               ///< goes on when ranks are masked out
  bool joins_domains = false;       ///< a row crosses to another domain once per (token, domain)
  bool joins_hosts = false;         ///< serves groups over several hosts
  bool agrees_on_host = false;      ///< every call waits for the other ranks on the host
  bool one_rank_per_gpu = false;
  bool row_flags = false;               ///< CudaOptions::row_flags
  bool copy_engines = false;            ///< CudaMover::kCopyEngines
  std::int32_t max_ranks = 0;           ///< 0 = any number
  std::int32_t max_top_k = 0;           ///< 0 = any number
  std::int64_t max_tokens = 0;          ///< per rank and call that it is made for; 0 = any number
  std::vector<std::string_view> needs;  ///< of the machine or the build, for people
  std::string_view missing = {};        ///< which of these this build was made without, and how to get it; empty = none
};

enum class MemoryKind : std::int32_t {
  kShared,      ///< addressed by all ranks: shared memory of the host, or the symmetric heap of a GPU
  kPrivate,     ///< of one rank, on its device
  kPinnedHost,  ///< host memory that the GPU reads and writes
};

struct MemorySection {
  std::string_view name;
  MemoryKind kind = MemoryKind::kShared;
  std::int64_t initial_bytes = 0;  ///< taken when the dispatcher is created
  std::int64_t largest_bytes = 0;  ///< after the largest call that the configuration allows
  bool from_allocator = false;     ///< asked of CudaOptions::allocator, where there is one
};

/// The memory of one rank. The numbers come from the same objects that allocate it.
struct EPISTLE_API MemoryPlan {
  std::vector<MemorySection> sections;

  [[nodiscard]] std::int64_t initial_bytes(MemoryKind kind) const noexcept;
  [[nodiscard]] std::int64_t largest_bytes(MemoryKind kind) const noexcept;
};

/// What the memory of a dispatcher depends on beside its configuration.
struct MemoryQuery {
  int num_ranks = 1;
  int domain_size = 0;                    ///< ranks of a domain of the group; 0 = all in one
  int num_hosts = 1;                      ///< that the ranks are spread over evenly; one reaches no memory of another
  DeviceOptions options = HostOptions{};  ///< those of another device: what the dispatcher is made with by default
};

/// One dispatcher on one device.
class EPISTLE_API DispatcherInfo {
 public:
  struct Functions;
  DispatcherInfo(std::string_view name, Device device, std::string_view summary, Capabilities capabilities,
                 const Functions& functions);

  [[nodiscard]] std::string_view name() const noexcept { return name_; }
  [[nodiscard]] Device device() const noexcept { return device_; }
  [[nodiscard]] std::string_view summary() const noexcept { return summary_; }
  [[nodiscard]] const Capabilities& capabilities() const noexcept { return capabilities_; }

  /// Why it cannot serve `config` with `num_ranks` ranks, and what to change; nothing where it can. What only the
  /// machine knows (memory, GPUs, links) is found when a dispatcher is created.
  /// `domain_size`: ranks of a domain of the group; 0 = all in one.
  [[nodiscard]] std::optional<std::string> cannot_serve(const DispatcherConfig& config, int num_ranks,
                                                        int domain_size = 0) const;
  /// Throws kInvalidArgument or kUnsupported, as creating one does. On CUDA, for pages of 2 MiB and ranks with a GPU
  /// of their own.
  [[nodiscard]] MemoryPlan memory(const DispatcherConfig& config, const MemoryQuery& query) const;
  [[nodiscard]] MemoryPlan memory(const DispatcherConfig& config, int num_ranks, int domain_size = 0) const;

 private:
  std::string_view name_;
  Device device_;
  std::string_view summary_;
  Capabilities capabilities_;
  const Functions* functions_;
};

/// All dispatchers that Epistle knows, those of a device in order of preference. In a build without CUDA those of the
/// CUDA device are there as well, to be asked.
[[nodiscard]] EPISTLE_API const std::vector<const DispatcherInfo*>& dispatchers() noexcept;

/// Throws kNotFound, with the names there are.
[[nodiscard]] EPISTLE_API const DispatcherInfo& find_dispatcher(std::string_view name, Device device = Device::kHost);

}  // namespace epistle
