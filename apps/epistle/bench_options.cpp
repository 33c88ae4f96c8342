#include "bench_options.hpp"

#include <limits>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "group/limits.hpp"
#include "json_option.hpp"
#include "not_empty.hpp"
#include "number_options.hpp"
#include "routing/limits.hpp"

namespace epistle::cli {
namespace {

constexpr std::int64_t kMaxInt64 = std::numeric_limits<std::int64_t>::max();
// What a dispatcher takes, see src/dispatch/call/resolved_config.cpp.
constexpr std::int64_t kMaxHidden = std::int64_t{1} << 24;
constexpr std::int64_t kMaxTokens = std::int64_t{1} << 28;
constexpr std::int64_t kMaxAlignment = 1024;
constexpr std::int64_t kMaxWorkers = 1024;
constexpr std::int64_t kMaxIterations = 1'000'000;  // days, and a sample of each is kept
constexpr std::int64_t kMaxRuns = 1000;
// A stream takes about a thousand launches before the host has to wait, and a pair has up to four.
constexpr std::int64_t kMaxChainedPairs = 200;
constexpr std::int64_t kMaxReplays = 1'000'000;
constexpr std::int64_t kMaxSms = 1024;                                           // no GPU has as many
constexpr double kMaxSpread = 1.0 - std::numeric_limits<double>::epsilon() / 2;  // the largest number below 1
constexpr double kMinCapacityFactor = 1e-6;
constexpr double kMaxCapacityFactor = 1e6;

}  // namespace

void add_run_options(CLI::App& command, BenchOptions& options, const std::string& default_dispatchers) {
  command.add_option("--device", options.device, "Where rows lie: host or cuda (default: host)")
      ->check(CLI::IsMember({"host", "cuda"}).description(""))
      ->type_name("DEVICE");
  command
      .add_option("--dispatcher,--dispatchers", options.dispatchers,
                  "Dispatchers to compare, separated by commas (default: " + default_dispatchers + ")")
      ->delimiter(',')
      ->type_name("NAME,...");
  add_number(command, "--ranks", options.num_ranks, {1, kMaxRanksOfHost},
             "Ranks of the group (default: those of the launcher, or as many as --tokens lists, or 2)");
  add_number(command, "--domain-size", options.domain_size, {1, kMaxRanksOfHost},
             "Ranks of a domain, which reach each other by load and store; only links go from one domain to "
             "another (default: EPISTLE_DOMAIN_SIZE, or all ranks of the host)");
  command
      .add_option("--group", options.group,
                  "Ranks are threads or processes (default: processes where a launcher started them, else threads)")
      ->check(CLI::IsMember({"threads", "processes"}).description(""))
      ->type_name("KIND");
  command
      .add_option("--model", options.model, "Shape of a published model; see 'epistle models' (default: qwen3-30b-a3b)")
      ->check(not_empty())
      ->type_name("NAME");
  add_number(command, "--hidden", options.hidden, {1, kMaxHidden}, "Elements per row, instead of the model's");
  add_number(command, "--experts", options.num_experts, {1, kMaxRoutedExperts}, "Experts, instead of the model's");
  add_number(command, "--top-k", options.top_k, {1, kMaxRoutedExperts}, "Experts per token, instead of the model's")
      ->type_name("K");
  add_numbers(command, "--tokens", options.num_tokens, {0, kMaxTokens},
              "Tokens per rank: one count for all (default: 4096), or one for every rank, separated by commas")
      ->type_name("N,...");
  add_number(command, "--tokens-spread", options.tokens_spread, {0.0, kMaxSpread},
             "Draw every rank's tokens, by the seed, from the S-th part below --tokens up to it: 0 <= S < 1 (default: "
             "0)")
      ->type_name("S");
  command.add_option("--dtype", options.dtype, "bf16, fp16, fp32, or fp8 (e4m3 + scales; combined in bf16)")
      ->type_name("TYPE");
  command
      .add_option(
          "--wire", options.wire,
          "How rows of bf16 travel: as-given (default), or quantised to fp8 e4m3 on their way, in blocks of 128, "
          "with fp32 scales (fp8), with those in columns where they arrive (fp8-columns), with those that are powers "
          "of two (fp8-pow2), or with exponent bytes (fp8-ue8m0)")
      ->type_name("WIRE");
  command.add_option("--layout", options.layout, "token_major, expert_major or expert_blocks")->type_name("LAYOUT");
  add_number(command, "--alignment", options.alignment, {1, kMaxAlignment},
             "expert_major: rows that groups are padded to (default: 1)")
      ->type_name("ROWS");
  command.add_option("--sizing", options.sizing, "exact or capacity (static shapes)")->type_name("SIZING");
  add_number(command, "--capacity-rows", options.capacity_rows, {1, kMaxInt32},
             "Rows per rank (capacity sizing) or per expert (expert_blocks)")
      ->type_name("ROWS");
  command.add_option("--overflow", options.overflow, "What does not fit a capacity: error (default) or drop")
      ->type_name("POLICY");
  command
      .add_option("--routing", options.routing, "uniform, balanced, forced-random, zipf:A, lognormal:S or trace:FILE")
      ->type_name("SPEC");
  add_number(command, "--layer", options.trace_layer, {0, kMaxInt32}, "Layer of the trace (default: its first)")
      ->type_name("L");
  command
      .add_option("--placement", options.placement,
                  "Experts have replicas: a JSON file of the experts of every rank's slots, or replicas:N, where every "
                  "rank has copies of N experts of the next one")
      ->type_name("FILE|replicas:N");
  command
      .add_option(
          "--combine", options.combine,
          "hierarchical, flat, deepep_v2 or domains: the order of sums (default: hierarchical; domains where there are "
          "several)")
      ->type_name("MODE");
  command.add_option("--weights", options.weights, "Combine multiplies by the routing weights: on or off")
      ->type_name("on|off");
  add_number(command, "--drop-capacity", options.drop_capacity, {kMinCapacityFactor, kMaxCapacityFactor},
             "Capacity factor of the router: drops what an expert gets beyond F times the mean")
      ->type_name("F");
  command
      .add_option("--drop-policy", options.drop_policy,
                  "With --drop-capacity, what stays: prob (highest weight, default) or position")
      ->type_name("POLICY");
  command.add_flag("--pad-to-capacity", options.pad_to_capacity,
                   "With --drop-capacity and expert_blocks: every expert's block has the router's capacity");
  command.add_flag("--no-zero-padding", options.no_zero_padding, "Dispatch leaves padding rows as they are");
  add_number(command, "--workers", options.num_workers, {1, kMaxWorkers}, "Host device: threads per rank (default: 1)");
  add_number(command, "--sms", options.num_sms, {1, kMaxSms},
             "CUDA device: streaming multiprocessors that a call may occupy (default: as tuned)");
  command
      .add_option("--mover", options.mover,
                  "CUDA device: what moves rows: auto (as tuned, default), vector, bulk or copy-engines")
      ->type_name("MOVER");
  add_number(command, "--runs", options.num_runs, {1, kMaxRuns},
             "CUDA device: calls in a row that one sample is the mean of (default: 8). With 1 two events stand around "
             "every call, which show about 3 us of their own");
  add_number(command, "--iters", options.num_iterations, {1, kMaxIterations},
             fmt::format("Measured iterations (default: {})", options.num_iterations));
  add_number(command, "--warmup", options.num_warmups, {0, kMaxIterations}, "Iterations before these (default: 5)");
  add_number(command, "--seed", options.seed, {0, kMaxInt64}, "Seed of routing and data (default: 1)");
  command.add_flag("--no-verify", options.no_verify, "Do not compare every output bit with the reference");
  command.add_flag("--no-bind", options.no_bind,
                   "Host device: do not bind ranks to their share of the processing units");
  add_json_option(command, options.targets.json);
  add_html_option(command, options.targets.html);
  command.add_flag("--quiet", options.quiet, "No progress bar");
}

void add_profile_option(CLI::App& command, BenchOptions& options, const std::string& text) {
  command.add_option("--profile", options.profile, text)->check(not_empty())->type_name("FILE");
}

void add_chain_option(CLI::App& command, BenchOptions& options, const std::string& text) {
  add_number(command, "--chain", options.num_chained_pairs, {1, kMaxChainedPairs}, text);
}

void add_bench_options(CLI::App& command, BenchOptions& options) {
  add_run_options(
      command, options,
      "direct,alltoall; over several domains or hosts hybrid,alltoall; with --device cuda: direct, over several "
      "domains hybrid; --list names them");
  add_profile_option(command, options,
                     "Take dispatcher, workers or SMs, mover and buffers from a profile that epistle tune wrote");
  add_chain_option(
      command, options,
      "Also time chains of N pairs of dispatch (with expert ids) and combine, with no host wait in between; "
      "one chain per iteration. CUDA device: in one graph and without a graph; needs --sizing capacity");
  add_number(command, "--replays", options.num_replays, {1, kMaxReplays},
             "CUDA device: also replay a graph of one such pair N times in a row and time every replay; needs --sizing "
             "capacity");
  add_number(command, "--host-calls", options.num_host_calls, {1, kMaxReplays},
             "CUDA device: also time N dispatches (with expert ids) one by one by the host's clock, each from the call "
             "until its rows are there");
  command.add_flag("--stage-combine", options.stage_combine,
                   "Expert outputs lie in private memory: combine copies them first");
  add_numbers(command, "--mask", options.masked, {1, kMaxRanksOfHost - 1},
              "Mask these ranks out: the others go on without their tokens and their experts. Rank 0 stays");
}

std::vector<std::pair<std::string_view, std::string>> shared_options(const BenchOptions& options) {
  const auto text = [](const auto& value) { return fmt::format("{}", value); };
  const auto given = [&](const auto& value) { return value > 0 ? text(value) : std::string("not given"); };
  return {{"--device", options.device},
          {"--domain-size", given(options.domain_size)},
          {"--dispatcher", fmt::format("{}", fmt::join(options.dispatchers, ","))},
          {"--model", options.model},
          {"--hidden", given(options.hidden)},
          {"--experts", given(options.num_experts)},
          {"--top-k", given(options.top_k)},
          {"--tokens", fmt::format("{}", fmt::join(options.num_tokens, ","))},
          {"--tokens-spread", text(options.tokens_spread)},
          {"--dtype", options.dtype},
          {"--wire", options.wire},
          {"--layout", options.layout},
          {"--alignment", given(options.alignment)},
          {"--sizing", options.sizing},
          {"--capacity-rows", given(options.capacity_rows)},
          {"--overflow", options.overflow},
          {"--routing", options.routing},
          {"--layer", options.trace_layer < 0 ? given(0) : text(options.trace_layer)},
          {"--placement", options.placement},
          {"--combine", options.combine},
          {"--weights", options.weights},
          {"--drop-capacity", given(options.drop_capacity)},
          {"--drop-policy", options.drop_policy},
          {"--pad-to-capacity", text(options.pad_to_capacity)},
          {"--no-zero-padding", text(options.no_zero_padding)},
          {"--workers", given(options.num_workers)},
          {"--sms", given(options.num_sms)},
          {"--mover", options.mover},
          {"--runs", given(options.num_runs)},
          {"--iters", text(options.num_iterations)},
          {"--warmup", text(options.num_warmups)},
          {"--chain", given(options.num_chained_pairs)},
          {"--graph", text(options.chain_in_graph)},
          {"--replays", given(options.num_replays)},
          {"--host-calls", given(options.num_host_calls)},
          {"--seed", text(options.seed)},
          {"--no-verify", text(options.no_verify)},
          {"--no-bind", text(options.no_bind)},
          {"--stage-combine", text(options.stage_combine)},
          {"--mask", fmt::format("{}", fmt::join(options.masked, ","))},
          {"--profile", options.profile},
          {"--policy", options.policy},
          {"--gemm", text(options.gemm)},
          {"--concurrency", text(options.concurrency)}};
}

}  // namespace epistle::cli
