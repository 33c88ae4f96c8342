// The options of `epistle bench`, as given on the command line.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "html_option.hpp"

namespace CLI {
class App;
}

namespace epistle::cli {

/// Zero or empty where an option was left out and its default depends on others.
struct BenchOptions {
  std::string device = "host";
  std::vector<std::string> dispatchers;
  std::int32_t num_ranks = 0;
  std::int32_t domain_size = 0;
  std::string group;
  std::string model;
  std::int64_t hidden = 0;
  std::int32_t num_experts = 0;
  std::int32_t top_k = 0;
  std::vector<std::int64_t> num_tokens = {4096};  ///< one for every rank, or one for all
  double tokens_spread = 0.0;
  std::string dtype = "bf16";
  std::string wire = "as-given";
  std::string layout = "token_major";
  std::int32_t alignment = 0;
  std::string sizing = "exact";
  std::int64_t capacity_rows = 0;
  std::string overflow;
  std::string routing = "uniform";
  std::int32_t trace_layer = -1;
  std::string placement;  ///< empty = the trivial one
  std::string combine;
  std::string weights = "on";
  double drop_capacity = 0.0;
  std::string drop_policy;
  bool pad_to_capacity = false;
  bool no_zero_padding = false;
  std::int32_t num_workers = 0;
  std::int32_t num_sms = 0;
  std::string mover;
  std::int32_t num_runs = 0;  ///< 0 = not given
  std::int32_t num_iterations = 30;
  std::int32_t num_warmups = 5;
  std::int32_t num_chained_pairs = 0;  ///< 0 = not given
  std::int32_t num_replays = 0;        ///< 0 = not given
  std::int32_t num_host_calls = 0;     ///< 0 = not given
  std::uint64_t seed = 1;
  bool compares = false;  ///< contenders take turns, and what cannot serve is no error
  bool chain_in_graph = false;
  bool no_verify = false;
  bool no_bind = false;
  bool stage_combine = false;
  std::vector<std::int64_t> masked;  ///< ranks that the group goes on without
  std::string profile;
  std::string policy = "throughput";  ///< of tune
  bool gemm = false;                  ///< of tune
  std::int32_t concurrency = 1;       ///< of tune
  ResultTargets targets;
  bool quiet = false;
};

void add_bench_options(CLI::App& command, BenchOptions& options);

/// Those of them that a comparison has, too: what is run, and how often. `default_dispatchers` is for people.
void add_run_options(CLI::App& command, BenchOptions& options, const std::string& default_dispatchers);

/// --profile of the commands that use one; `text` says what for.
void add_profile_option(CLI::App& command, BenchOptions& options, const std::string& text);

/// --chain; `text` says what it does.
void add_chain_option(CLI::App& command, BenchOptions& options, const std::string& text);

/// The options that all ranks of a run must have in common, as (name, value).
[[nodiscard]] std::vector<std::pair<std::string_view, std::string>> shared_options(const BenchOptions& options);

}  // namespace epistle::cli
