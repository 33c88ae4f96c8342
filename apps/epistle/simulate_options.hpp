// The command line of epistle simulate.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "html_option.hpp"
#include "simulate/simulate.hpp"

namespace epistle::cli {

/// Zero or empty where an option was left out and its default depends on others.
struct SimulateOptions {
  std::string model;
  std::string cluster = "h100-hgx";
  std::string routing = "uniform";
  std::string precision;  ///< empty = not given
  std::string policy = "none";
  std::string placement;  ///< a file
  std::int32_t num_experts = 0;
  std::int32_t top_k = 0;
  double hidden = 0;
  double expert_ffn = 0;
  std::int32_t num_groups = 0;
  std::int32_t groups_per_token = 0;
  std::int32_t num_ranks = 0;
  std::int64_t tokens_per_rank = 4096;
  std::int32_t trace_layer = -1;
  std::int64_t seed = 1;
  std::int64_t num_steps = 1;
  double drift = 0;
  std::int32_t num_slots = 0;
  std::int64_t replan_every = 1;
  std::int64_t window_steps = 16;
  bool prefers_near = false;
  std::int64_t expert_bytes = 0;
  std::int64_t budget_bytes = -1;  ///< -1 = no limit
  std::int32_t num_sms = 0;
  std::vector<std::string> dispatchers;
  std::vector<std::string> measurements;
  ResultTargets targets;
  bool quiet = false;
};

void add_simulate_options(CLI::App& command, SimulateOptions& options);

/// Reads what the options name. Throws where it makes no sense.
[[nodiscard]] simulate::SimulateRequest make_simulate_request(const SimulateOptions& options);

/// A placement from JSON: for every rank the experts of its slots, as a list of lists, as the field `placement` of an
/// object, or in the only entry of its `results`, as epistle balance writes it. -1 = an empty slot.
[[nodiscard]] balance::SlotTable read_placement(const std::string& file);

}  // namespace epistle::cli
