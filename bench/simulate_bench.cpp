// The simulator on one core, beside the closed forms that it checks: `bench_simulate [--tokens N] [TRACE...]` prints a
// line for every routing and number of ranks with the errors of the closed forms, then how long a step takes as its
// tokens grow and what memory the process took at most. Fails where an error is beyond 1% (ranks and domains of a
// token) or 3% (busiest rank).
#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include <sys/resource.h>

#include <fmt/format.h>

#include "report/table.hpp"
#include "simulate/simulate.hpp"

namespace epistle::bench {
namespace {

using simulate::ClosedForms;
using simulate::SimulateRequest;
using simulate::StepResult;

constexpr double kMaxDistinctError = 0.01;
constexpr double kMaxBusiestError = 0.03;

struct BenchOptions {
  std::int64_t num_tokens = std::int64_t{1} << 18;  ///< of a step, over all ranks
  std::vector<std::string> traces;
};

BenchOptions parse(int argc, char** argv) {
  BenchOptions options;
  for (int idx = 1; idx < argc; ++idx) {
    const std::string_view argument = argv[idx];
    if (argument == "--tokens" && idx + 1 < argc) {
      const std::string_view text = argv[++idx];
      const auto read = std::from_chars(text.data(), text.data() + text.size(), options.num_tokens);
      const bool is_number = read.ec == std::errc() && read.ptr == text.data() + text.size();
      if (!is_number || options.num_tokens < 1024) throw std::runtime_error("--tokens takes a number from 1024 on");
    } else if (argument.starts_with('-')) {
      throw std::runtime_error(
          fmt::format("unknown argument {}; usage: bench_simulate [--tokens N] [TRACE...]", argument));
    } else {
      options.traces.emplace_back(argument);
    }
  }
  return options;
}

SimulateRequest make_request(const std::string& routing, std::int32_t num_ranks, std::int64_t tokens_per_rank) {
  SimulateRequest request;
  request.cluster = find_cluster("h100-hgx");
  request.tokens.routing = RoutingSpec::parse(routing);
  const bool is_trace = request.tokens.routing.kind == RoutingKind::kTrace;
  // DeepSeek-V3's router: the top 8 of 256 experts, in 4 of 8 groups where the routing knows groups.
  request.tokens.num_experts = is_trace ? 0 : 256;
  request.tokens.top_k = is_trace ? 0 : 8;
  request.tokens.num_groups = 8;
  request.tokens.groups_per_token = 4;
  request.tokens.num_ranks = num_ranks;
  request.tokens.tokens_per_rank = tokens_per_rank;
  request.hidden = 7168;
  request.expert_ffn = 2048;
  request.dispatchers = {"deepep"};
  return request;
}

const Calibration& priors() {
  static const Calibration calibration{{}};
  return calibration;
}

/// Compares one line; returns whether it keeps within the bounds.
bool add_line(const std::string& routing, const SimulateRequest& request, Table& table) {
  const StepResult step = simulate::simulate(request, priors()).steps.front();
  if (!step.closed_forms) throw std::runtime_error(routing + " has no closed form");
  const ClosedForms& forms = *step.closed_forms;
  const double ranks_error = forms.distinct_ranks / step.distinct_ranks - 1.0;
  const double domains_error = forms.distinct_domains / step.distinct_domains - 1.0;
  const double busiest_error = forms.busiest_rank_factor / step.busiest_rank_factor - 1.0;
  const bool holds = std::fabs(ranks_error) <= kMaxDistinctError && std::fabs(domains_error) <= kMaxDistinctError &&
                     std::fabs(busiest_error) <= kMaxBusiestError;
  const auto percent = [](double error) { return fmt::format("{:+.2f}%", 100 * error); };
  table.add_row({routing, std::to_string(request.tokens.num_ranks), fmt::format("{:.3f}", step.distinct_ranks),
                 percent(ranks_error), fmt::format("{:.3f}", step.distinct_domains), percent(domains_error),
                 fmt::format("{:.3f}", step.busiest_rank_factor), percent(busiest_error), holds ? "" : "beyond"});
  return holds;
}

bool compare_closed_forms(const BenchOptions& options) {
  Table table({{"routing"},
               {"EP", Align::kRight},
               {"ranks", Align::kRight},
               {"error", Align::kRight},
               {"domains", Align::kRight},
               {"error", Align::kRight},
               {"busiest", Align::kRight},
               {"error", Align::kRight},
               {""}});
  std::vector<std::string> routings = {"uniform",  "zipf:0.5",    "zipf:0.8",     "zipf:1",
                                       "zipf:1.2", "lognormal:1", "forced-random"};
  for (const std::string& trace : options.traces) routings.push_back("trace:" + trace);
  bool holds = true;
  for (const std::string& routing : routings) {
    for (std::int32_t ranks = 2; ranks <= 1024; ranks *= 2) {
      const std::int64_t tokens = std::max<std::int64_t>(options.num_tokens / ranks, 1);
      holds = add_line(routing, make_request(routing, ranks, tokens), table) && holds;
    }
  }
  std::fputs(table.render().c_str(), stdout);
  return holds;
}

void time_steps() {
  Table table({{"routing"},
               {"EP", Align::kRight},
               {"tokens per rank", Align::kRight},
               {"seconds", Align::kRight},
               {"ns per token", Align::kRight}});
  for (const char* const routing : {"uniform", "zipf:0.8", "forced-random"}) {
    for (const std::int64_t tokens : {256, 1024, 4096}) {
      constexpr std::int32_t kRanks = 1024;
      const auto start = std::chrono::steady_clock::now();
      (void)simulate::simulate(make_request(routing, kRanks, tokens), priors());
      const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      table.add_row({routing, std::to_string(kRanks), std::to_string(tokens), fmt::format("{:.2f}", seconds),
                     fmt::format("{:.0f}", seconds * 1e9 / static_cast<double>(tokens * kRanks))});
    }
  }
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  std::fputs(
      fmt::format("\n{}most memory: {:.1f} MiB\n", table.render(), static_cast<double>(usage.ru_maxrss) / 1024).c_str(),
      stdout);
}

}  // namespace
}  // namespace epistle::bench

int main(int argc, char** argv) {
  try {
    const bool holds = epistle::bench::compare_closed_forms(epistle::bench::parse(argc, argv));
    epistle::bench::time_steps();
    return holds ? 0 : 1;
  } catch (const std::exception& error) {
    std::fputs(fmt::format("bench_simulate: {}\n", error.what()).c_str(), stderr);
    return 2;
  }
}
