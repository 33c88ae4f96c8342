#include "plan_options.hpp"

#include <array>
#include <charconv>
#include <limits>
#include <utility>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "epistle/error.hpp"
#include "epistle/routing.hpp"
#include "epistle/trace.hpp"

#include "choice_option.hpp"
#include "cluster_option.hpp"
#include "core/reject.hpp"
#include "cost/exchange_counts.hpp"
#include "cost/successive_draws.hpp"
#include "json_option.hpp"
#include "number_options.hpp"
#include "routing/popularity.hpp"

namespace epistle::cli {
namespace {

constexpr double kMaxPlanTokens = 1e8;
constexpr double kMaxContext = 1e7;
constexpr double kMinMs = 1e-3;
constexpr double kMaxMs = 1e7;
constexpr double kMaxSkew = 4;

/// Popularity of every expert under which its share of the tokens is that of a trace, over all layers.
std::vector<double> popularity_of_trace(const std::string& path, std::int32_t num_experts) {
  std::vector<double> sums(static_cast<std::size_t>(num_experts), 0.0);
  double num_tokens = 0.0;
  summarize_trace(path, [&](const TraceLayerSummary& layer) {
    if (layer.num_experts != num_experts) {
      throw Error(ErrorCode::kInvalidArgument, fmt::format("layer {} of {} has {} experts and the model {}",
                                                           layer.layer, path, layer.num_experts, num_experts));
    }
    for (std::size_t expert = 0; expert < sums.size(); ++expert) {
      sums[expert] += static_cast<double>(layer.tokens_per_expert[expert]);
    }
    num_tokens += static_cast<double>(layer.num_tokens);
  });
  if (num_tokens <= 0) throw Error(ErrorCode::kInvalidArgument, fmt::format("{} has no tokens", path));
  for (double& sum : sums) sum /= num_tokens;
  return popularity_of_inclusion(sums);
}

std::vector<double> read_popularity(const std::string& routing, std::int32_t num_experts) {
  const RoutingSpec spec = RoutingSpec::parse(routing);
  if (spec.kind == RoutingKind::kTrace) return popularity_of_trace(spec.trace_path, num_experts);
  if (spec.kind == RoutingKind::kZipf) {
    if (spec.parameter > kMaxSkew) {
      epistle::reject(fmt::format("--routing is '{}'; a plan knows zipf:0 to zipf:{}", routing, kMaxSkew));
    }
    return zipf_popularity(num_experts, spec.parameter);
  }
  if (spec.kind == RoutingKind::kLognormal) {
    constexpr std::uint64_t kSeed = 1;  // that of epistle bench and epistle simulate where none is given
    const std::vector<std::uint64_t> shares = lognormal_popularity(num_experts, spec.parameter, kSeed);
    return {shares.begin(), shares.end()};
  }
  return {};  // the others load experts evenly
}

/// Sequences and their length, in place of the tokens that they come to.
void set_batch(const PlanOptions& options, PlanRequest& request) {
  const bool decode = request.workload == Workload::kDecode;
  if (options.sequence > 0) request.context_tokens = options.sequence;
  if (options.batch <= 0) return;
  if (options.tokens > 0 || options.global_tokens > 0) {
    epistle::reject("--batch says how many tokens there are; give it without --tokens and --global-tokens");
  }
  if (!decode && options.sequence <= 0) {
    epistle::reject(fmt::format("--batch {} of --workload {} needs --sequence, the tokens of each", options.batch,
                                options.workload));
  }
  request.tokens_per_gpu = decode ? options.batch : options.batch * options.sequence;
}

}  // namespace

void add_plan_options(CLI::App& command, PlanOptions& options) {
  command
      .add_option("--model", options.model,
                  "A model of 'epistle models', or its config.json (default: qwen3-235b-a22b)")
      ->type_name("NAME|FILE");
  command.add_option("--cluster", options.cluster, "A preset, or a JSON file (default: h100-hgx); see docs/plan.md")
      ->type_name("NAME|FILE");
  command.add_option("--workload", options.workload, "prefill, decode (default) or training")->type_name("KIND");
  add_number(command, "--tokens", options.tokens, {1.0, kMaxPlanTokens},
             "Tokens of a step per GPU; in decode sequences (default: 32)");
  add_number(command, "--global-tokens", options.global_tokens, {1.0, kMaxPlanTokens},
             "Tokens of a step of a whole EP group, instead: a batch that does not grow with EP");
  add_number(command, "--batch", options.batch, {1.0, kMaxPlanTokens},
             "Sequences of a step per GPU, instead of --tokens: one token of each in decode, else all of --sequence");
  add_number(command, "--sequence,--context", options.sequence, {1.0, kMaxContext},
             "Tokens of a sequence, which attention sees (default: 4096)");
  command
      .add_option("--routing", options.routing,
                  "How even experts are loaded: uniform (default), balanced, forced-random, zipf:A, lognormal:S or "
                  "trace:FILE")
      ->type_name("SPEC");
  command.add_option("--objective", options.objective, "throughput per GPU (default) or latency")->type_name("WHAT");
  add_number(command, "--max-tpot-ms", options.max_tpot_ms, {kMinMs, kMaxMs}, "Longest step of decode that is allowed");
  add_number(command, "--max-ttft-ms", options.max_ttft_ms, {kMinMs, kMaxMs},
             "Longest step of prefill that is allowed");
  command
      .add_option("--precision", options.precision,
                  "Of experts: bf16, fp8, fp8_block or fp4 (default: what a config.json stores them in, or fp8_block)")
      ->type_name("TYPE");
  add_number(command, "--gpus", options.num_gpus, {1, 1 << 20}, "GPUs in all: what EP leaves over are replicas");
  command.add_option("--dispatchers", options.dispatchers, "Those that may be used (default: all but fused_bound)")
      ->delimiter(',')
      ->type_name("NAME,...");
  add_number(command, "--memory-share", options.memory_share, {0.05, 1.0},
             "Share of a GPU's memory that a plan may use (default: 0.9)");
  command
      .add_option("--measurements", options.measurements,
                  "Refit the curves to these: tables of calibrate, or records of bench")
      ->expected(1, CLI::detail::expected_max_vector_size)
      ->type_name("FILE...");
  command
      .add_option("--explain", options.explain, "Why plan A is ahead of B, term by term (names or places in the list)")
      ->expected(2)
      ->type_name("A B");
  add_number(command, "--top", options.num_shown, {1, 10000}, "Plans that the list shows (default: 10)");
  add_json_option(command, options.targets.json);
  add_html_option(command, options.targets.html);
  command.add_flag("-q,--quiet", options.quiet, "No progress bar");
}

PlanRequest make_plan_request(const PlanOptions& options) {
  using std::pair;
  PlanRequest request;
  request.model = read_plan_model(options.model);
  request.cluster = cluster_of_option(options.cluster);
  request.workload = choose("--workload", options.workload,
                            std::array{pair<std::string_view, Workload>{"prefill", Workload::kPrefill},
                                       pair<std::string_view, Workload>{"decode", Workload::kDecode},
                                       pair<std::string_view, Workload>{"training", Workload::kTraining}});
  request.objective = choose("--objective", options.objective,
                             std::array{pair<std::string_view, Objective>{"throughput", Objective::kThroughput},
                                        pair<std::string_view, Objective>{"latency", Objective::kLatency}});
  request.precision = choose_precision(options.precision, request.model.stored_precision);
  constexpr double kUsualTokens = 32;
  if (options.tokens > 0 && options.global_tokens > 0) {
    epistle::reject("--tokens is per GPU and --global-tokens of an EP group; give one of them");
  }
  request.tokens_per_gpu = options.tokens > 0 ? options.tokens : kUsualTokens;
  request.global_tokens = options.global_tokens;
  set_batch(options, request);
  request.popularity = read_popularity(options.routing, request.model.num_experts);
  request.num_gpus = options.num_gpus;
  request.memory_share = options.memory_share;
  request.dispatchers = options.dispatchers;
  if (options.max_tpot_ms > 0 && request.workload != Workload::kDecode)
    epistle::reject("--max-tpot-ms is for --workload decode");
  if (options.max_ttft_ms > 0 && request.workload != Workload::kPrefill) {
    epistle::reject("--max-ttft-ms is for --workload prefill");
  }
  constexpr double kUsPerMs = 1000;
  request.max_step_us = kUsPerMs * (options.max_tpot_ms + options.max_ttft_ms);
  return request;
}

}  // namespace epistle::cli
