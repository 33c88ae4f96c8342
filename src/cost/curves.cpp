#include "cost/curves.hpp"

#include <algorithm>
#include <cmath>

namespace epistle {

double overlapped_us(double norm, double a_us, double b_us, double c_us) noexcept {
  const double largest = std::max({a_us, b_us, c_us});
  if (largest <= 0.0) return 0.0;
  // Scaled by the largest part, so that no power overflows.
  const double sum = std::pow(a_us / largest, norm) + std::pow(b_us / largest, norm) + std::pow(c_us / largest, norm);
  return largest * std::pow(sum, 1.0 / norm);
}

ExchangeTimes exchange_time(const ExchangeWork& work, const ExchangeTerms& terms) noexcept {
  const double rank_doublings = std::log2(std::max(work.ranks_per_domain, 1.0));
  const double domain_doublings = std::log2(std::max(work.num_domains, 1.0));
  ExchangeTimes times;
  const double far_domains = std::max(work.num_domains - 1.0, 0.0);
  times.fixed_us = terms.start_us + terms.row_pass_us_per_byte * work.row_bytes +
                   terms.rank_doubling_us * rank_doublings + terms.domain_doubling_us * domain_doublings +
                   terms.far_domain_us * far_domains;
  if (far_domains > 0 && work.counts_exchanged) {
    times.fixed_us += terms.network_us + terms.counts_domain_us * far_domains;
  }
  if (work.host_waits) times.fixed_us += terms.host_wait_us;
  const double sm_rows =
      work.rank_rows + terms.domain_row_share * work.domain_rows + terms.token_row_share * work.crossing_tokens;
  times.sm_us = sm_rows * (terms.row_sm_us + work.row_bytes / terms.sm_bytes_per_us) / std::max(work.num_sms, 1.0);
  times.link_us = (work.link_bytes + terms.self_share * work.self_bytes) *
                  (1.0 + terms.link_loss_per_doubling * rank_doublings) /
                  (terms.link_efficiency * work.link_bytes_per_us);
  times.network_us =
      work.network_bytes > 0 ? work.network_bytes / (terms.network_efficiency * work.network_bytes_per_us) : 0.0;
  const double moving_us = overlapped_us(terms.overlap_norm, times.sm_us, times.link_us, times.network_us);
  times.total_us = overlapped_us(terms.start_norm, times.fixed_us, moving_us);
  return times;
}

namespace {

/// Bytes of memory that reading `bytes` over and over costs: what fits the cache stays there, and what is larger by a
/// little leaves nothing, as the least recently used go first.
double read_bytes(double bytes, double cache_bytes, double cached_share) noexcept {
  if (cache_bytes <= 0.0) return bytes;
  constexpr double kSharpness = 6;  // of the end of the cache: its addresses are hashed, so it is not a step
  const double kept = 1.0 / (1.0 + std::pow(bytes / cache_bytes, kSharpness));
  return bytes * (1.0 - kept * (1.0 - std::min(cached_share, 1.0)));
}

}  // namespace

GemmTimes gemm_time(const GemmWork& work, const GemmTerms& terms) noexcept {
  constexpr double kMatrices = 3;         // gate, up, down
  constexpr double kFlopsPerElement = 2;  // multiply and add
  const double elements = kMatrices * work.hidden * work.expert_ffn;
  const double rows_per_expert = work.active_experts > 0 ? work.rows / work.active_experts : 0.0;
  const double tiled_rows = work.active_experts * std::hypot(rows_per_expert, terms.tile_rows);
  // bf16 rows in and out, and between the GEMMs.
  const double row_bytes = 4 * work.hidden + 6 * work.expert_ffn;
  GemmTimes times;
  times.fixed_us = terms.start_us;
  times.compute_us = kFlopsPerElement * elements * tiled_rows / (terms.compute_efficiency * work.peak_flops_per_us);
  times.weights_us = read_bytes(work.active_experts * elements * work.weight_bytes_per_element, work.cache_bytes,
                                terms.cached_byte_share) /
                     (terms.weight_efficiency * work.hbm_bytes_per_us);
  times.activations_us = (work.rows + terms.global_row_share * work.global_rows) * row_bytes /
                         (terms.activation_efficiency * work.hbm_bytes_per_us);
  times.total_us =
      times.fixed_us + overlapped_us(terms.overlap_norm, times.compute_us, times.weights_us) + times.activations_us;
  return times;
}

}  // namespace epistle
