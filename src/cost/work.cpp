#include "cost/work.hpp"

#include <algorithm>
#include <cmath>

namespace epistle {

ExchangeWork exchange_base(const Cluster& cluster, double num_ranks, double ranks_per_domain) {
  // A cluster without a network has a very slow one: a plan that needs it must not look good.
  constexpr double kNoNetworkBytesPerS = 1e8;
  ExchangeWork work;
  work.ranks_per_domain = std::min(num_ranks, ranks_per_domain);
  work.num_domains = std::ceil(num_ranks / ranks_per_domain);
  work.num_sms = cluster.num_sms();
  work.link_bytes_per_us = cluster.link_bytes_per_s() * kBytesPerUsOfBytesPerS;
  work.network_bytes_per_us = std::max(cluster.network_bytes_per_s(), kNoNetworkBytesPerS) * kBytesPerUsOfBytesPerS;
  return work;
}

ExchangeWork low_latency_work(const ExchangeWork& base, const ExchangeShape& shape) {
  ExchangeWork work = base;
  const double bytes = shape.busiest_factor * shape.tokens_per_rank * shape.top_k * shape.row_bytes;
  // A row to oneself is copied, and crosses no link.
  work.self_bytes = bytes / shape.num_ranks;
  work.link_bytes = bytes / work.num_domains - work.self_bytes;
  work.network_bytes = bytes - bytes / work.num_domains;
  return work;
}

ExchangeWork throughput_work(const ExchangeWork& base, const ExchangeShape& shape, double num_sms) {
  ExchangeWork work = base;
  const double tokens = shape.busiest_factor * shape.tokens_per_rank;
  const bool crosses = work.num_domains > 1;
  work.num_sms = num_sms;
  work.row_bytes = shape.row_bytes;
  work.rank_rows = tokens * shape.distinct_ranks;
  work.domain_rows = crosses ? tokens * shape.distinct_domains : 0.0;
  work.crossing_tokens = crosses ? tokens : 0.0;
  work.self_bytes = work.rank_rows / shape.num_ranks * shape.row_bytes;
  work.link_bytes = work.rank_rows * shape.row_bytes - work.self_bytes;
  work.network_bytes = work.domain_rows * (1.0 - 1.0 / work.num_domains) * shape.row_bytes;
  return work;
}

ExchangeWork one_sided_work(const ExchangeWork& base, const ExchangeShape& shape, double num_sms) {
  ExchangeWork work = base;
  const double tokens = shape.busiest_factor * shape.tokens_per_rank;
  work.num_sms = num_sms;
  work.row_bytes = shape.row_bytes;
  work.rank_rows = tokens;
  const double bytes = tokens * shape.distinct_ranks * shape.row_bytes;
  work.self_bytes = bytes / shape.num_ranks;
  work.network_bytes = (bytes - work.self_bytes) * (1.0 - 1.0 / work.num_domains);
  work.link_bytes = bytes - work.self_bytes - work.network_bytes;
  return work;
}

ExchangeWork collective_work(const ExchangeWork& base, double num_ranks, double bytes) {
  ExchangeWork work = base;
  work.self_bytes = bytes / num_ranks;
  work.link_bytes = bytes - work.self_bytes;
  work.network_bytes = bytes * (1.0 - 1.0 / work.num_domains);
  return work;
}

std::string_view to_string(ExpertType type) noexcept {
  switch (type) {
    case ExpertType::kBf16:
      return "bf16";
    case ExpertType::kFp8:
      return "fp8";
    case ExpertType::kFp8Block:
      return "fp8_block";
    case ExpertType::kFp4:
      return "fp4";
  }
  return "bf16";
}

double weight_bytes_per_element(ExpertType type) noexcept {
  switch (type) {
    case ExpertType::kBf16:
      return 2.0;
    case ExpertType::kFp8:
    case ExpertType::kFp8Block:
      return 1.0;
    case ExpertType::kFp4:
      return 0.5 + 1.0 / 16;  // a scale of one byte for 16 elements
  }
  return 2.0;
}

double peak_flops_per_us(const Cluster& cluster, ExpertType type) {
  double peak = cluster.value(ClusterField::kBf16FlopsPerS);
  const double fp8 = cluster.value(ClusterField::kFp8FlopsPerS);
  const double fp4 = cluster.value(ClusterField::kFp4FlopsPerS);
  if (type != ExpertType::kBf16 && fp8 > 0) peak = fp8;
  if (type == ExpertType::kFp4 && fp4 > 0) peak = fp4;
  return peak * 1e-6;
}

double cache_bytes(const Cluster& cluster) noexcept {
  struct ArchitectureCache {
    std::string_view architecture;
    double bytes;
  };
  // Data sheets and cudaDevAttrL2CacheSize, 2026-11.
  constexpr ArchitectureCache kCaches[] = {{"sm_80", 40e6},   {"sm_90", 50e6},   {"sm_100", 126e6},
                                           {"sm_103", 126e6}, {"sm_120", 128e6}, {"gfx942", 256e6}};
  for (const ArchitectureCache& cache : kCaches) {
    if (cluster.gpu_architecture == cache.architecture) return cache.bytes;
  }
  return 0.0;
}

GemmWork gemm_work(const Cluster& cluster, const GemmShape& shape) {
  GemmWork work;
  work.global_rows = shape.global_tokens * shape.top_k;
  // Somebody gets the row, however few there are.
  work.rows = std::max(shape.busiest_factor * work.global_rows / shape.num_ranks, 1.0);
  // Of the rank that has most where they cannot be shared evenly.
  work.active_experts = std::min(std::max(std::ceil(shape.num_experts / shape.num_ranks), 1.0), work.rows);
  work.hidden = shape.hidden;
  work.expert_ffn = shape.expert_ffn;
  work.weight_bytes_per_element = weight_bytes_per_element(shape.type);
  work.peak_flops_per_us = peak_flops_per_us(cluster, shape.type);
  work.hbm_bytes_per_us = cluster.hbm_bytes_per_s() * kBytesPerUsOfBytesPerS;
  return work;
}

}  // namespace epistle
