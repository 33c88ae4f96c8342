// What a call has to move and to compute, from the shape of the model, the routing and the cluster: the amounts that
// curves turn into times. One place for forecasts, fits and plans.
#pragma once

#include <cstdint>
#include <string_view>

#include "cost/curves.hpp"
#include "topology/cluster.hpp"

namespace epistle {

/// A dispatch or a combine of one rank.
struct ExchangeShape {
  double tokens_per_rank = 0;
  double num_ranks = 1;
  double top_k = 1;
  double distinct_ranks = 1;    ///< per token, on average
  double distinct_domains = 1;  ///< per token, on average; 1 inside a domain
  double row_bytes = 0;         ///< as it travels, scales included
  double busiest_factor = 1;    ///< of received rows: what the busiest rank takes over the average
};

/// Rates of `cluster`, ranks that lie in domains of `ranks_per_domain`.
[[nodiscard]] ExchangeWork exchange_base(const Cluster& cluster, double num_ranks, double ranks_per_domain);

/// One row per (token, expert), from all SMs.
[[nodiscard]] ExchangeWork low_latency_work(const ExchangeWork& base, const ExchangeShape& shape);

/// One row per (token, rank), and one per (token, domain) over the network, from `num_sms` SMs.
[[nodiscard]] ExchangeWork throughput_work(const ExchangeWork& base, const ExchangeShape& shape, double num_sms);

/// One row per (token, rank), written by the kernel of each token.
[[nodiscard]] ExchangeWork one_sided_work(const ExchangeWork& base, const ExchangeShape& shape, double num_sms);

/// A collective whose larger side (of its input and its output) has `bytes` on every rank.
[[nodiscard]] ExchangeWork collective_work(const ExchangeWork& base, double num_ranks, double bytes);

enum class ExpertType : std::int32_t { kBf16, kFp8, kFp8Block, kFp4 };

[[nodiscard]] std::string_view to_string(ExpertType type) noexcept;
/// Scales included.
[[nodiscard]] double weight_bytes_per_element(ExpertType type) noexcept;
/// The rate of the units of `type`, or of the widest that the GPU has for it.
[[nodiscard]] double peak_flops_per_us(const Cluster& cluster, ExpertType type);

struct GemmShape {
  double global_tokens = 0;  ///< of all ranks
  double num_ranks = 1;
  double num_experts = 1;  ///< redundant copies included
  double top_k = 1;
  double hidden = 0;
  double expert_ffn = 0;
  double busiest_factor = 1;  ///< rows of the busiest rank over those of the average one
  ExpertType type = ExpertType::kBf16;
};

/// The last-level cache of the cluster's GPU; 0 = not known.
[[nodiscard]] double cache_bytes(const Cluster& cluster) noexcept;

[[nodiscard]] GemmWork gemm_work(const Cluster& cluster, const GemmShape& shape);

}  // namespace epistle
