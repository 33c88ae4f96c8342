// Requests that take a moment.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "simulate/simulate.hpp"
#include "topology/cluster.hpp"

namespace epistle::simulate::test {

struct SmallShape {
  std::string routing = "uniform";
  std::int32_t num_ranks = 16;
  std::int64_t tokens_per_rank = 64;
  std::int32_t num_experts = 64;
  std::int32_t top_k = 4;
};

[[nodiscard]] inline SimulateRequest small_request(const SmallShape& shape = {},
                                                   std::string_view cluster = "h100-hgx") {
  SimulateRequest request;
  request.cluster = find_cluster(cluster);
  request.tokens.routing = RoutingSpec::parse(shape.routing);
  request.tokens.num_ranks = shape.num_ranks;
  request.tokens.tokens_per_rank = shape.tokens_per_rank;
  request.tokens.num_experts = shape.num_experts;
  request.tokens.top_k = shape.top_k;
  request.hidden = 2048;
  request.expert_ffn = 768;
  request.dispatchers = {"deepep"};
  return request;
}

[[nodiscard]] inline const Calibration& priors() {
  static const Calibration calibration{{}};
  return calibration;
}

[[nodiscard]] inline SimulateResult run(const SimulateRequest& request) { return simulate(request, priors()); }

/// A step of one request.
[[nodiscard]] inline StepResult run_step(const SimulateRequest& request) { return run(request).steps.at(0); }

}  // namespace epistle::simulate::test
