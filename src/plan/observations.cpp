#include "plan/observations.hpp"

#include <algorithm>
#include <cmath>

#include "cost/fit/families.hpp"

namespace epistle {
namespace {

double doublings(double value) { return std::log2(std::max(value, 1.0)); }

}  // namespace

std::vector<std::string> exchange_path(const Cluster& cluster, const ExchangeMode& mode) {
  // Plans size Epistle's dispatchers as epistle bench does with these options.
  if (!mode.own_name.empty()) return {measured_name(cluster), "token_major", "capacity"};
  return {measured_name(cluster)};
}

Observation exchange_observation(const Cluster& cluster, const ExchangeMode& mode, const ExchangeSetting& setting,
                                 const ExchangeWork& work) {
  // Of tables, only those of throughput modes name SMs.
  const double sm_position = mode.kind == ExchangeKind::kThroughput ? doublings(setting.num_sms) : 0.0;
  return {
      .table = {},
      .label = {},
      .point = {.path = exchange_path(cluster, mode),
                .position = {doublings(setting.tokens), doublings(setting.num_ranks), sm_position,
                             doublings(setting.row_bytes), doublings(setting.num_experts), crossing_position(work)}},
      .work = work};
}

Observation collective_observation(const Cluster& cluster, double num_ranks, double bytes, const ExchangeWork& work) {
  return {.table = {},
          .label = {},
          .point = {.path = {measured_name(cluster)}, .position = {doublings(bytes), doublings(num_ranks)}},
          .work = work};
}

Observation gemm_observation(const GemmShape& shape, const GemmWork& work) {
  const double rows_per_expert = work.active_experts > 0 ? work.rows / work.active_experts : 0.0;
  return {.table = {},
          .label = {},
          .point = {.path = {},
                    .position = {doublings(shape.global_tokens), doublings(rows_per_expert), doublings(shape.num_ranks),
                                 doublings(shape.hidden), doublings(shape.expert_ffn), doublings(shape.num_experts)}},
          .work = work};
}

double exchange_row_bytes(double hidden, bool fp8) noexcept {
  constexpr double kScaleBytes = 4;
  constexpr double kScaleBlock = 128;
  return fp8 ? hidden + kScaleBytes * hidden / kScaleBlock : 2 * hidden;
}

}  // namespace epistle
