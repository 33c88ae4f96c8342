#include "balance_options.hpp"

#include <algorithm>
#include <iterator>
#include <limits>
#include <string_view>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "balance/replay.hpp"
#include "json_option.hpp"
#include "number_options.hpp"

namespace epistle::cli {
namespace {

// A deployment of a few thousand GPUs, and what a number of experts times slots takes stays in memory.
constexpr std::int64_t kMaxBalanceRanks = 65536;
constexpr std::int64_t kMaxBytes = std::numeric_limits<std::int64_t>::max() / 2;
constexpr std::int64_t kMaxCandidates = 100000;
constexpr std::int64_t kMaxPrefetch = 1024;

}  // namespace

void add_balance_options(CLI::App& command, BalanceOptions& options) {
  command.add_option("source", options.source, "trace:FILE, JSON lines, plain or gzip; trace:- is standard input")
      ->type_name("trace:FILE");
  command
      .add_option(
          "--loads", options.loads_path,
          "Loads of experts in place of a trace: .json, .csv (a row for every layer) or .npy; any of them also as '-'")
      ->type_name("FILE");
  add_number(command, "--ranks", options.num_ranks, {1, kMaxBalanceRanks}, "Ranks that hold experts");
  add_numbers(command, "--slots", options.slots, {0, kMaxInt32},
              "Slots of all ranks together, or of every rank, separated by commas (default: one for every expert)");
  add_numbers(command, "--domains", options.domains, {0, kMaxInt32},
              "Number of scale-up domains, or that of every rank, separated by commas (default: 1)");
  add_number(command, "--groups", options.num_groups, {0, kMaxInt32},
             "Groups of experts to keep in one domain each, as routers that limit groups want it (default: none)");
  add_number(command, "--batch", options.batch_tokens, {1, kMaxInt32},
             "Tokens that are routed at a time (default: 2048)")
      ->type_name("TOKENS");
  command
      .add_option("--plan-on", options.plan_on,
                  "first-half: one plan, on the first half of the tokens; windows: again after every batch. The second "
                  "half is scored (default: first-half)")
      ->check(CLI::IsMember({"first-half", "windows"}).description(""))
      ->type_name("WHAT");
  const std::vector<std::string> names(std::begin(balance::kPolicyNames), std::end(balance::kPolicyNames));
  command
      .add_option("--policy", options.policies,
                  "none, eplb, incremental, per-batch; separated by commas (default: all that can serve the ranks)")
      ->delimiter(',')
      ->check(CLI::IsMember(names).description(""))
      ->type_name("LIST");
  command
      .add_option("--objective", options.objective,
                  "What ranks shall have equally many of: tokens (prefill, training) or activated (experts, in decode) "
                  "(default: tokens)")
      ->check(CLI::IsMember({"tokens", "activated"}).description(""))
      ->type_name("WHAT");
  add_number(command, "--layer", options.layer, {0, kMaxInt32}, "Only this layer")->type_name("L");
  add_number(command, "--bytes-per-expert", options.expert_bytes, {0, kMaxBytes},
             "Weights of an expert (default: 44040192, an fp8 expert of DeepSeek-V3)")
      ->type_name("BYTES");
  add_number(command, "--budget", options.budget_bytes, {0, kMaxBytes},
             "Weights that a plan may copy between ranks (default: no limit)")
      ->type_name("BYTES");
  add_number(command, "--max-into-rank", options.max_bytes_into_rank, {0, kMaxBytes},
             "Weights that a plan may copy into one rank (default: no limit)")
      ->type_name("BYTES");
  add_number(command, "--max-across-domains", options.max_bytes_across, {0, kMaxBytes},
             "Weights that a plan may copy from domain to domain (default: no limit)")
      ->type_name("BYTES");
  add_number(command, "--target", options.target, {0.01, 1.0},
             "Balancedness at which an incremental plan is good enough (default: 0.98)")
      ->type_name("B");
  add_number(command, "--min-gain", options.min_gain, {0.0, 1.0},
             "A plan that gains less balancedness copies nothing (default: 0, any gain)")
      ->type_name("B");
  add_number(command, "--candidates", options.num_candidates, {1, kMaxCandidates},
             "Placements of a first plan on a trace, the best of which over many windows is taken (default: 64)");
  add_number(
      command, "--half-life", options.half_life_tokens, {0, kMaxInt32},
      "Tokens seen so long ago count half in quotas and plans; 0 = all alike (default: what foretells best what was "
      "seen)")
      ->type_name("TOKENS");
  command
      .add_option(
          "--foretell", options.foretell,
          "incremental, of a trace: layers: quotas of a batch go by what it brought the layers before, too; off: "
          "by batches of the past alone (default: layers)")
      ->check(CLI::IsMember({"layers", "off"}).description(""))
      ->type_name("WHAT");
  add_number(command, "--prefetch", options.prefetch, {0, kMaxPrefetch},
             "per-batch: experts that every rank may fetch for a batch into spare slots besides its own (default: 0)");
  command.add_flag("--near", options.prefers_near,
                   "incremental: tokens stay on their rank, or in their domain, as far as the quotas allow");
  add_number(command, "--max-imbalance", options.max_imbalance, {0.0, 1.0},
             "With --near: how far a replica may go beyond its quota for tokens of its own rank (default: 0)")
      ->type_name("PART");
  add_json_option(command, options.targets.json);
  add_html_option(command, options.targets.html);
  command
      .add_option(
          "--serve", options.serve_address,
          "Then serve the last policy's figures to Prometheus at http://HOST:PORT/metrics until interrupted; the "
          "host is 127.0.0.1 unless given, port 0 is any that is free")
      ->type_name("[HOST:]PORT");
  command.add_flag("-q,--quiet", options.quiet, "No progress bar");
}

}  // namespace epistle::cli
