// What is asked of a calibrated curve: the work, and where it lies among the settings that were measured.
#pragma once

#include <string>
#include <vector>

#include "cost/fit/calibrated_curve.hpp"
#include "cost/work.hpp"
#include "plan/exchange_modes.hpp"
#include "topology/cluster.hpp"

namespace epistle {

/// Settings of a dispatch or a combine that sends rows of tokens.
struct ExchangeSetting {
  double tokens = 0;  ///< of a rank
  double num_ranks = 1;
  double num_sms = 1;
  double row_bytes = 0;
  double num_experts = 1;
};

/// Whose measurements a forecast for `mode` goes by first.
[[nodiscard]] std::vector<std::string> exchange_path(const Cluster& cluster, const ExchangeMode& mode);

[[nodiscard]] Observation exchange_observation(const Cluster& cluster, const ExchangeMode& mode,
                                               const ExchangeSetting& setting, const ExchangeWork& work);

/// A collective whose larger side has `bytes` on every rank.
[[nodiscard]] Observation collective_observation(const Cluster& cluster, double num_ranks, double bytes,
                                                 const ExchangeWork& work);

[[nodiscard]] Observation gemm_observation(const GemmShape& shape, const GemmWork& work);

/// Bytes of a row of `hidden` elements: fp8 with a scale for 128 elements, or bf16.
[[nodiscard]] double exchange_row_bytes(double hidden, bool fp8) noexcept;

}  // namespace epistle
