// The options of `epistle balance`, as given on the command line.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "html_option.hpp"

namespace epistle::cli {

/// Zero or empty where an option was left out and its default depends on others.
struct BalanceOptions {
  std::string source;      ///< trace:FILE
  std::string loads_path;  ///< --loads
  std::int32_t num_ranks = 0;
  std::vector<std::int64_t> slots;
  std::vector<std::int64_t> domains;
  std::int32_t num_groups = 0;
  std::int64_t batch_tokens = 2048;
  std::string plan_on = "first-half";
  std::vector<std::string> policies;  ///< none = all that can serve the cluster
  std::string objective = "tokens";
  std::int32_t layer = -1;
  std::int64_t expert_bytes = 0;
  std::int64_t budget_bytes = -1;  ///< -1 = no limit
  std::int64_t max_bytes_into_rank = -1;
  std::int64_t max_bytes_across = -1;
  double target = 0.98;
  double min_gain = 0.0;
  std::int32_t num_candidates = 64;
  std::int64_t half_life_tokens = -1;  ///< -1 = as what was seen tells
  std::string foretell = "layers";
  std::int32_t prefetch = 0;
  bool prefers_near = false;
  double max_imbalance = 0.0;
  ResultTargets targets;
  std::string serve_address;  ///< --serve; empty = no
  bool quiet = false;
};

void add_balance_options(CLI::App& command, BalanceOptions& options);

}  // namespace epistle::cli
