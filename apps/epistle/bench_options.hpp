// The options of `epistle bench`, from the command line to what the benchmark runs.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "epistle/routing.hpp"

#include "measure/dispatch_bench.hpp"

namespace CLI {
class App;
}

namespace epistle::cli {

/// As given; zero or empty where an option was left out and its default depends on others.
struct BenchOptions {
  std::vector<std::string> dispatchers = {"direct", "alltoall"};
  std::int32_t num_ranks = 0;
  std::string group = "threads";
  std::string model;
  std::int64_t hidden = 0;
  std::int32_t num_experts = 0;
  std::int32_t top_k = 0;
  std::int64_t num_tokens = 4096;
  std::string dtype = "bf16";
  std::string layout = "token_major";
  std::int32_t alignment = 0;
  std::string sizing = "exact";
  std::int64_t capacity_rows = 0;
  std::string overflow = "error";
  std::string routing = "uniform";
  std::int32_t trace_layer = -1;
  std::string combine = "hierarchical";
  std::string weights = "on";
  double drop_capacity = 0.0;
  std::string drop_policy = "prob";
  bool pad_to_capacity = false;
  std::int32_t num_workers = 1;
  std::int32_t num_iterations = 30;
  std::int32_t num_warmups = 5;
  std::uint64_t seed = 1;
  bool no_verify = false;
  bool stage_combine = false;
  std::string json_target;
  bool quiet = false;
};

void add_bench_options(CLI::App& command, BenchOptions& options);

/// What is run: the options with a model preset, a trace and defaults filled in.
struct BenchPlan {
  BenchSpec spec;
  int num_ranks = 1;
  std::string model;  ///< canonical name; empty = custom shape
  RoutingSpec routing;
  std::vector<RoutingTable> tables;    ///< all ranks'
  std::int64_t dropped_by_router = 0;  ///< assignments that the capacity factor removed, over all ranks
  std::int64_t router_capacity = 0;    ///< tokens an expert takes from a rank; 0 = no capacity factor
};

/// Throws Error for values that make no sense, alone or together.
[[nodiscard]] BenchPlan make_bench_plan(const BenchOptions& options, int num_ranks);

}  // namespace epistle::cli
