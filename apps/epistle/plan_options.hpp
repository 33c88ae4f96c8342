// The command line of epistle plan.
#pragma once

#include <string>
#include <vector>

#include "html_option.hpp"
#include "plan/plan_request.hpp"

namespace epistle::cli {

struct PlanOptions {
  std::string model = "qwen3-235b-a22b";
  std::string cluster = "h100-hgx";
  std::string workload = "decode";
  std::string objective = "throughput";
  std::string precision;  ///< empty = not given
  std::string routing = "uniform";
  double tokens = 0;  ///< 0 = not given; so with the three below
  double global_tokens = 0;
  double batch = 0;
  double sequence = 0;
  double max_tpot_ms = 0;
  double max_ttft_ms = 0;
  double memory_share = 0.9;
  std::int32_t num_gpus = 0;
  std::int32_t num_shown = 10;
  std::vector<std::string> dispatchers;
  std::vector<std::string> measurements;
  std::vector<std::string> explain;
  ResultTargets targets;
  bool quiet = false;
};

void add_plan_options(CLI::App& command, PlanOptions& options);

/// Reads what the options name. Throws where it makes no sense.
[[nodiscard]] PlanRequest make_plan_request(const PlanOptions& options);

}  // namespace epistle::cli
