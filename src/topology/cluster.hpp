// What a cluster is, as plain data: one kind of GPU, scale-up domains of equal size, network cards between them.
// Nothing here looks at the machine that it runs on.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace epistle {

/// A number and where it comes from.
struct Constant {
  double value = 0.0;
  std::string source;
  std::string date;  ///< "2026-11-21", "2022"
};

/// What travels inside a domain.
enum class ScaleUpLink : std::int32_t {
  kNvLink,          ///< through switches: any peer at the full rate
  kInfinityFabric,  ///< a link per peer: one peer has its share of the rate only
  kPcie,
};

[[nodiscard]] std::string_view to_string(ScaleUpLink link) noexcept;

/// The quantities of a cluster. Units are part of their names (cluster_fields).
enum class ClusterField : std::int32_t {
  kGpusPerDomain,
  kLinkBytesPerS,  ///< of one GPU into its domain, per direction
  kNicsPerGpu,
  kNicBytesPerS,  ///< of one network card, per direction
  kNumSms,
  kHbmBytes,
  kHbmBytesPerS,
  kBf16FlopsPerS,       ///< dense
  kFp8FlopsPerS,        ///< dense; 0 = no such units
  kFp4FlopsPerS,        ///< dense; 0 = no such units
  kMulticast,           ///< 1 = one store reaches all ranks of a domain (NVLink multicast)
  kInNetworkReduction,  ///< 1 = the switches of a domain add (NVLink SHARP)
};

inline constexpr std::size_t kNumClusterFields = 12;

struct ClusterFieldInfo {
  ClusterField field;
  std::string_view name;  ///< in JSON and in messages
  double min;
  double max;
  bool whole;  ///< an integer
};

/// In the order of ClusterField.
[[nodiscard]] std::span<const ClusterFieldInfo> cluster_fields() noexcept;

struct Cluster {
  std::string name;
  std::string title;
  std::string preset;            ///< whose measurements are of such GPUs; empty = of none but those of its own name
  std::string gpu_architecture;  ///< "sm_90", "gfx942"; "unknown", "host"
  ScaleUpLink link = ScaleUpLink::kNvLink;
  std::array<Constant, kNumClusterFields> constants;

  [[nodiscard]] const Constant& constant(ClusterField field) const noexcept {
    return constants[static_cast<std::size_t>(field)];
  }
  [[nodiscard]] Constant& constant(ClusterField field) noexcept { return constants[static_cast<std::size_t>(field)]; }
  [[nodiscard]] double value(ClusterField field) const noexcept { return constant(field).value; }
  [[nodiscard]] std::int32_t gpus_per_domain() const noexcept {
    return static_cast<std::int32_t>(value(ClusterField::kGpusPerDomain));
  }
  [[nodiscard]] std::int32_t num_sms() const noexcept {
    return static_cast<std::int32_t>(value(ClusterField::kNumSms));
  }
  [[nodiscard]] double link_bytes_per_s() const noexcept { return value(ClusterField::kLinkBytesPerS); }
  /// Of all network cards of one GPU; 0 = there is no network.
  [[nodiscard]] double network_bytes_per_s() const noexcept {
    return value(ClusterField::kNicsPerGpu) * value(ClusterField::kNicBytesPerS);
  }
  /// Network cards of a domain: of a host, where a domain is one.
  [[nodiscard]] std::int32_t nics_per_domain() const noexcept;
  /// GPUs that share a network card: 1 unless a card serves several.
  [[nodiscard]] std::int32_t gpus_per_nic() const noexcept;
  /// Ways from domain to domain that do not meet: GPUs at one place of their domains are on one, with those that share
  /// their card; 0 = there is no network.
  [[nodiscard]] std::int32_t num_rails() const noexcept;
  [[nodiscard]] double hbm_bytes() const noexcept { return value(ClusterField::kHbmBytes); }
  [[nodiscard]] double hbm_bytes_per_s() const noexcept { return value(ClusterField::kHbmBytesPerS); }
};

/// Under which name measurements of such a cluster are known.
[[nodiscard]] inline const std::string& measured_name(const Cluster& cluster) noexcept {
  return cluster.preset.empty() ? cluster.name : cluster.preset;
}

/// Ranks of it have no GPUs.
[[nodiscard]] inline bool is_host(const Cluster& cluster) noexcept { return cluster.gpu_architecture == "host"; }

[[nodiscard]] std::span<const Cluster> cluster_presets();

/// Looks up a preset by name or alias ("h100", "h100_sxm"), ignoring case. Throws kNotFound with the names there are.
[[nodiscard]] const Cluster& find_cluster(std::string_view name);

/// Throws kInvalidArgument that names the field, what it is and what it may be.
void check_cluster(const Cluster& cluster);

/// Reads a cluster from JSON text. `file` is named in errors. Fields that are not given come from `preset`, a name in
/// the text; without one all quantities must be there. A quantity is a number, or an object of value, source and date.
/// Throws kCorruptInput that names the file and the field.
[[nodiscard]] Cluster parse_cluster(std::string_view text, std::string_view file);

/// Throws kNotFound where there is no such file; else as parse_cluster.
[[nodiscard]] Cluster read_cluster(const std::string& file);

}  // namespace epistle
