#include "bench_options.hpp"

#include <limits>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "group/limits.hpp"

namespace epistle::cli {
namespace {

constexpr std::int32_t kMaxInt32 = std::numeric_limits<std::int32_t>::max();
constexpr std::int64_t kMaxInt64 = std::numeric_limits<std::int64_t>::max();
constexpr std::int64_t kMaxTokens = std::int64_t{1} << 28;  // what a dispatcher takes
constexpr std::int32_t kMaxIterations = 1'000'000;          // days, and a sample of each is kept
constexpr std::int32_t kMaxRuns = 1000;
constexpr std::int32_t kMaxSms = 1024;  // no GPU has as many
constexpr double kMinCapacityFactor = 1e-6;
constexpr double kMaxCapacityFactor = 1e6;

}  // namespace

void add_bench_options(CLI::App& command, BenchOptions& options) {
  const CLI::Validator not_empty(
      [](const std::string& text) { return text.empty() ? std::string("must not be empty") : std::string(); }, "");
  const auto positive = CLI::Range(1, kMaxInt32).description("");
  command.add_option("--device", options.device, "Where rows lie: host or cuda (default: host)")
      ->check(CLI::IsMember({"host", "cuda"}).description(""))
      ->type_name("DEVICE");
  command
      .add_option("--dispatcher", options.dispatchers,
                  "Dispatchers to compare, separated by commas; --list names them (default: direct,alltoall; with "
                  "--device cuda: direct)")
      ->delimiter(',')
      ->type_name("NAME,...");
  command.add_option("--ranks", options.num_ranks, "Ranks of the group (default: 2, or those of the launcher)")
      ->check(CLI::Range(1, kMaxRanks).description(""))
      ->type_name("N");
  command
      .add_option("--group", options.group,
                  "Ranks are threads or processes (default: processes where a launcher started them, else threads)")
      ->check(CLI::IsMember({"threads", "processes"}).description(""))
      ->type_name("KIND");
  command
      .add_option("--model", options.model, "Shape of a published model; see 'epistle models' (default: qwen3-30b-a3b)")
      ->check(not_empty)
      ->type_name("NAME");
  command.add_option("--hidden", options.hidden, "Elements per row, instead of the model's")
      ->check(positive)
      ->type_name("N");
  command.add_option("--experts", options.num_experts, "Experts, instead of the model's")
      ->check(positive)
      ->type_name("N");
  command.add_option("--top-k", options.top_k, "Experts per token, instead of the model's")
      ->check(positive)
      ->type_name("K");
  command.add_option("--tokens", options.num_tokens, "Tokens per rank (default: 4096)")
      ->check(CLI::Range(std::int64_t{0}, kMaxTokens).description(""))
      ->type_name("N");
  command.add_option("--dtype", options.dtype, "bf16, fp16, fp32, or fp8 (e4m3 + scales; combined in bf16)")
      ->type_name("TYPE");
  command.add_option("--layout", options.layout, "token_major, expert_major or expert_slots")->type_name("LAYOUT");
  command.add_option("--alignment", options.alignment, "expert_major: rows that groups are padded to (default: 1)")
      ->check(positive)
      ->type_name("ROWS");
  command.add_option("--sizing", options.sizing, "exact or capacity (static shapes)")->type_name("SIZING");
  command
      .add_option("--capacity-rows", options.capacity_rows,
                  "Rows per rank (capacity sizing) or per expert (expert_slots)")
      ->check(CLI::Range(std::int64_t{1}, kMaxInt64).description(""))
      ->type_name("ROWS");
  command.add_option("--overflow", options.overflow, "What does not fit a capacity: error (default) or drop")
      ->type_name("POLICY");
  command
      .add_option("--routing", options.routing, "uniform, balanced, forced-random, zipf:A, lognormal:S or trace:FILE")
      ->type_name("SPEC");
  command.add_option("--layer", options.trace_layer, "Layer of the trace (default: its first)")
      ->check(CLI::Range(0, kMaxInt32).description(""))
      ->type_name("L");
  command.add_option("--combine", options.combine, "hierarchical or flat")->type_name("MODE");
  command.add_option("--weights", options.weights, "Combine multiplies by the routing weights: on or off")
      ->type_name("on|off");
  command
      .add_option("--drop-capacity", options.drop_capacity,
                  "Capacity factor of the router: drops what an expert gets beyond F times the mean")
      ->check(CLI::Range(kMinCapacityFactor, kMaxCapacityFactor).description(""))
      ->type_name("F");
  command
      .add_option("--drop-policy", options.drop_policy,
                  "With --drop-capacity, what stays: prob (highest weight, default) or position")
      ->type_name("POLICY");
  command.add_flag("--pad-to-capacity", options.pad_to_capacity,
                   "With --drop-capacity and expert_slots: every expert's block has the router's capacity");
  command.add_flag("--no-zero-padding", options.no_zero_padding, "Dispatch leaves padding rows as they are");
  command.add_option("--workers", options.num_workers, "Host device: threads per rank (default: 1)")
      ->check(positive)
      ->type_name("N");
  command
      .add_option("--sms", options.num_sms,
                  "CUDA device: streaming multiprocessors that a call may occupy (default: as tuned)")
      ->check(CLI::Range(1, kMaxSms).description(""))
      ->type_name("N");
  command
      .add_option("--mover", options.mover,
                  "CUDA device: what moves rows: auto (as tuned, default), vector, bulk or copy-engines")
      ->type_name("MOVER");
  command
      .add_option("--runs", options.num_runs,
                  "CUDA device: calls in a row that one sample is the mean of (default: 8). With 1 two events stand "
                  "around every call, which show about 3 us of their own")
      ->check(CLI::Range(1, kMaxRuns).description(""))
      ->type_name("N");
  command.add_option("--iters", options.num_iterations, "Measured iterations (default: 30)")
      ->check(CLI::Range(1, kMaxIterations).description(""))
      ->type_name("N");
  command.add_option("--warmup", options.num_warmups, "Iterations before these (default: 5)")
      ->check(CLI::Range(0, kMaxIterations).description(""))
      ->type_name("N");
  command.add_option("--seed", options.seed, "Seed of routing and data (default: 1)")
      ->check(CLI::Range(std::int64_t{0}, kMaxInt64).description(""))
      ->type_name("N");
  command.add_flag("--no-verify", options.no_verify, "Do not compare every output bit with the reference");
  command.add_flag("--no-bind", options.no_bind,
                   "Host device: do not bind ranks to their share of the processing units");
  command.add_flag("--stage-combine", options.stage_combine,
                   "Expert outputs lie in private memory: combine copies them first");
  command.add_option("--json", options.json_target, "Write the result as JSON to a file, or '-' for standard output")
      ->check(not_empty)
      ->type_name("FILE");
  command.add_flag("--quiet", options.quiet, "No progress bar");
}

std::vector<std::pair<std::string_view, std::string>> shared_options(const BenchOptions& options) {
  const auto text = [](const auto& value) { return fmt::format("{}", value); };
  const auto given = [&](const auto& value) { return value > 0 ? text(value) : std::string("not given"); };
  return {{"--device", options.device},
          {"--dispatcher", fmt::format("{}", fmt::join(options.dispatchers, ","))},
          {"--model", options.model},
          {"--hidden", given(options.hidden)},
          {"--experts", given(options.num_experts)},
          {"--top-k", given(options.top_k)},
          {"--tokens", text(options.num_tokens)},
          {"--dtype", options.dtype},
          {"--layout", options.layout},
          {"--alignment", given(options.alignment)},
          {"--sizing", options.sizing},
          {"--capacity-rows", given(options.capacity_rows)},
          {"--overflow", options.overflow},
          {"--routing", options.routing},
          {"--layer", options.trace_layer < 0 ? given(0) : text(options.trace_layer)},
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
          {"--seed", text(options.seed)},
          {"--no-verify", text(options.no_verify)},
          {"--no-bind", text(options.no_bind)},
          {"--stage-combine", text(options.stage_combine)}};
}

}  // namespace epistle::cli
