// What `epistle balance` found, as a table and as JSON.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "balance/replay.hpp"
#include "balance_options.hpp"
#include "json_text.hpp"

namespace epistle::cli {

struct BalanceReport {
  std::string source;
  balance::Cluster cluster;
  std::vector<balance::ReplayResult> results;    ///< by policy, then layer
  std::vector<std::vector<std::int64_t>> loads;  ///< [layers][num_experts]; tokens
  std::string no_eplb = {};                      ///< why EPLB was left out; empty = it was not
};

/// A line for every policy: means over the layers, and the worst.
[[nodiscard]] std::string render_balance(const BalanceReport& report, const BalanceOptions& options);

[[nodiscard]] Json balance_json(const BalanceReport& report, const BalanceOptions& options);

}  // namespace epistle::cli
