// What a step's rows cost under one dispatcher: bytes by class of link, the busiest link, and times.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cost/fit/calibration.hpp"
#include "plan/exchange_modes.hpp"
#include "simulate/traffic.hpp"
#include "topology/cluster.hpp"

namespace epistle::simulate {

enum class LinkKind : std::int32_t { kDomainOut, kDomainIn, kNetworkOut, kNetworkIn };
/// "out of" and "into" are a rank's; "domain link out", "network card in".
[[nodiscard]] std::string_view to_string(LinkKind kind) noexcept;

/// The link that is busy for longest at its nominal rate.
struct BusiestLink {
  LinkKind kind = LinkKind::kDomainOut;
  std::int32_t rank = 0;  ///< the first of those that share a card
  double bytes = 0;
  double us = 0;
};

/// A dispatch or a combine of all ranks.
struct ExchangeLoad {
  double self_bytes = 0;  ///< of all ranks together
  double domain_bytes = 0;
  double network_bytes = 0;
  double other_rail_bytes = 0;     ///< of network_bytes
  std::vector<double> rail_bytes;  ///< network_bytes by the rail that they leave by; empty within one domain
  BusiestLink busiest_link;
  std::int32_t slowest_rank = 0;
  double us = 0;  ///< until the slowest rank is done
  double low_us = 0;
  double high_us = 0;
  double mean_us = 0;  ///< of the ranks' own times
};

/// The grouped GEMMs of all ranks.
struct GemmLoad {
  std::int32_t slowest_rank = 0;
  double us = 0;
  double low_us = 0;
  double high_us = 0;
  double mean_us = 0;
};

struct ModeStep {
  const ExchangeMode* mode = nullptr;
  std::int32_t num_sms = 0;
  std::optional<std::string> refusal;  ///< why it cannot serve this; nothing else is set then
  ExchangeLoad dispatch;
  ExchangeLoad combine;
  GemmLoad gemm;
  double layer_us = 0;  ///< one behind the other; of fused layers the longer of exchange and GEMMs
  double layer_low_us = 0;
  double layer_high_us = 0;
  double straggler_factor = 1;  ///< layer_us over what it would be if every rank took the mean time
};

/// What one rank's experts get.
struct ExpertRows {
  double rows = 0;
  double active_experts = 0;
};

struct ModeRules {
  const Cluster* cluster = nullptr;
  const Calibration* calibration = nullptr;
  double hidden = 0;
  double expert_ffn = 0;
  double num_experts = 0;
  double top_k = 0;
  double tokens_per_rank = 0;
  ExpertType precision = ExpertType::kFp8Block;
  std::int32_t num_sms = 0;  ///< of the exchange where a mode can choose; 0 = the most of its choices
};

/// Grouped GEMMs of a step, whatever mode brings the rows; `expert_rows` [num_ranks].
[[nodiscard]] GemmLoad time_gemms(const ModeRules& rules, std::int64_t num_tokens,
                                  std::span<const ExpertRows> expert_rows);

[[nodiscard]] ModeStep time_mode(const ModeRules& rules, const ExchangeMode& mode, const TrafficCounter& traffic,
                                 const GemmLoad& gemms);

}  // namespace epistle::simulate
