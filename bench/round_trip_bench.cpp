// Dispatch and combine among process ranks, against the copy limit of the same run:
//   2 ranks and 16 ranks, 4096 tokens each, hidden 2048, bf16, top-8 of 128, token_major.
// The last lines compare with what the host device promises.
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include "epistle/dispatcher.hpp"
#include "epistle/models.hpp"
#include "epistle/routing.hpp"

#include "measure/copy_limit.hpp"
#include "measure/pattern.hpp"
#include "measure/statistics.hpp"
#include "rank_team.hpp"
#include "topology/affinity.hpp"

namespace epistle::bench {
namespace {

constexpr std::int64_t kTokens = 4096;
constexpr double kMicrosPerSecond = 1e6;
constexpr double kNanosPerMicro = 1e3;

enum Step : int { kLayout, kDispatch, kCombine, kRoundTrip, kCopyLimit };
constexpr const char* kStepNames[] = {"layout", "dispatch", "combine", "round_trip"};

/// One rank's data and dispatcher; lives as long as its steps.
struct RankState {
  RoutingTable table;
  std::vector<std::byte> rows;
  std::vector<std::byte> out;
  DispatcherConfig config;
  std::optional<Dispatcher> dispatcher;
  Handle handle;
  Received received;

  RankState(Group& group, const std::string& dispatcher_name) {
    const ModelPreset& model = find_model("qwen3-30b-a3b");
    table = generate_routing({.kind = RoutingKind::kUniform}, {.num_tokens = kTokens,
                                                               .num_experts = model.num_experts,
                                                               .top_k = model.top_k,
                                                               .rank = group.rank(),
                                                               .num_ranks = group.size()});
    config.hidden = model.hidden;
    config.num_experts = model.num_experts;
    config.top_k = model.top_k;
    config.max_tokens = kTokens;
    dispatcher.emplace(group, dispatcher_name, config);
    rows.resize(static_cast<std::size_t>(kTokens * row_bytes()));
    out.resize(rows.size());
    fill_values({.rank = group.rank()}, config.input, rows.data(), static_cast<std::int64_t>(rows.size()));
    prepare();
    dispatch();
    const Rows outputs = received.expert_outputs();
    fill_values({.rank = group.rank()}, outputs.dtype, static_cast<std::byte*>(outputs.data),
                outputs.num_rows * outputs.row_bytes());
  }

  [[nodiscard]] std::int64_t row_bytes() const { return config.hidden * dtype_bytes(config.input); }
  void prepare() { handle = dispatcher->prepare({.expert_ids = table.ids(), .weights = table.probs()}); }
  void dispatch() {
    received.release();
    received = dispatcher->dispatch(
        {.handle = handle,
         .tokens = {.data = rows.data(), .num_rows = kTokens, .hidden = config.hidden, .dtype = config.input}});
  }
  void combine() {
    dispatcher->combine(
        {.handle = handle,
         .rows = received.expert_outputs(),
         .out = {.data = out.data(), .num_rows = kTokens, .hidden = config.hidden, .dtype = config.input}});
  }
  /// Bytes of rows that this rank's share of a dispatch, or of a combine, must read and write once.
  [[nodiscard]] std::int64_t moved_bytes() const { return (kTokens + handle.wait_stats().output_rows) * row_bytes(); }
};

/// What the last lines need of the runs before.
struct Record {
  double of_limit = 0.0;
  double median_us = 0.0;
  double ns_per_byte = 0.0;
};
std::map<std::string, Record>& records() {
  static std::map<std::string, Record> all;
  return all;
}

std::string record_name(const std::string& dispatcher, int num_ranks, int step) {
  return fmt::format("{}/{}/{}", dispatcher, num_ranks, kStepNames[step]);
}

void run_steps(benchmark::State& state, const std::string& dispatcher_name, int num_ranks, int step) {
  std::shared_ptr<RankState> own;
  std::shared_ptr<CopyProbe> own_probe;
  std::optional<ScopedBinding> binding;
  RankTeam team(num_ranks, [&](Group& group) -> std::vector<RankTeam::Step> {
    binding.emplace(BindingShare{.idx = group.rank(), .num_shares = group.size()});
    auto rank = std::make_shared<RankState>(group, dispatcher_name);
    own = rank;
    auto probe = std::make_shared<CopyProbe>(group, CopyLimitOptions{.working_set_bytes = rank->moved_bytes()});
    own_probe = probe;
    return {[rank] { rank->prepare(); }, [rank] { rank->dispatch(); }, [rank] { rank->combine(); },
            [rank] {
              rank->prepare();
              rank->dispatch();
              rank->combine();
            },
            [probe] { probe->sample(); }};
  });
  for (const int warm_up : {kLayout, kDispatch, kCombine, kRoundTrip, kRoundTrip}) team.run(warm_up);
  std::vector<double> times_us;
  for ([[maybe_unused]] const auto iteration : state) {
    // Between the iterations, so that both see the same machine.
    state.PauseTiming();
    team.run(kCopyLimit);
    state.ResumeTiming();
    const double time_us = team.run(step);
    times_us.push_back(time_us);
    state.SetIterationTime(time_us / kMicrosPerSecond);
  }
  const double passes = step == kRoundTrip ? 2.0 : 1.0;
  const double moved_bytes = passes * static_cast<double>(own->moved_bytes()) * num_ranks;
  const CopyLimit limit = own_probe->limit();
  const double median_us = summarize(times_us).median;
  const double bytes_per_s = moved_bytes / (median_us / kMicrosPerSecond);
  const Record record{.of_limit = bytes_per_s / limit.bytes_per_s,
                      .median_us = median_us,
                      .ns_per_byte = median_us * kNanosPerMicro / moved_bytes};
  records()[record_name(dispatcher_name, num_ranks, step)] = record;
  state.counters["limit_GBps"] = limit.bytes_per_s / 1e9;
  state.counters["median_us"] = median_us;
  if (step == kLayout) return;
  state.counters["moved_GBps"] = bytes_per_s / 1e9;
  state.counters["of_limit"] = record.of_limit;
}

void print_goal(const std::string& what, double value, const char* relation, double goal, bool met) {
  fmt::print("{:<62} {:>6.2f}  ({} {:.2f})  {}\n", what, value, relation, goal, met ? "met" : "MISSED");
}

void print_goals() {
  const auto& all = records();
  const auto has = [&](const std::string& name) { return all.contains(name); };
  const auto at_least = [&](const std::string& name, const std::string& what, double goal) {
    if (has(name)) print_goal(what, all.at(name).of_limit, ">=", goal, all.at(name).of_limit >= goal);
  };
  fmt::print("\nAgainst the goals of the host device:\n");
  at_least("direct/2/dispatch", "direct dispatch, 2 ranks: share of the copy limit", 0.75);
  at_least("direct/2/combine", "direct combine, 2 ranks: share of the copy limit", 0.60);
  if (has("direct/2/round_trip") && has("alltoall/2/round_trip")) {
    const double ratio = all.at("alltoall/2/round_trip").median_us / all.at("direct/2/round_trip").median_us;
    print_goal("round trip, 2 ranks: alltoall time / direct time", ratio, ">=", 1.6, ratio >= 1.6);
  }
  for (const char* step : {"dispatch", "combine", "round_trip"}) {
    const std::string few = fmt::format("direct/2/{}", step);
    const std::string many = fmt::format("direct/16/{}", step);
    if (!has(few) || !has(many)) continue;
    // Each against the limit of its own case: the bandwidth of a shared machine changes between the two.
    const double ratio = all.at(few).of_limit / all.at(many).of_limit;
    print_goal(fmt::format("direct {}: time per byte, 16 ranks / 2 ranks", step), ratio, "<=", 1.5, ratio <= 1.5);
    fmt::print("{:<62} {:>6.2f}\n", "  the same in plain time", all.at(many).ns_per_byte / all.at(few).ns_per_byte);
  }
}

}  // namespace
}  // namespace epistle::bench

int main(int argc, char** argv) {
  using namespace epistle::bench;
  for (const int num_ranks : {2, 16}) {
    for (const std::string dispatcher : {"direct", "alltoall"}) {
      for (int step = 0; step < kCopyLimit; ++step) {
        const std::string name = fmt::format("{}/ranks:{}/{}", dispatcher, num_ranks, kStepNames[step]);
        benchmark::RegisterBenchmark(name.c_str(),
                                     [=](benchmark::State& state) { run_steps(state, dispatcher, num_ranks, step); })
            ->UseManualTime()
            ->Unit(benchmark::kMicrosecond)
            ->Iterations(num_ranks == 2 ? 60 : 20);
      }
    }
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  print_goals();
  benchmark::Shutdown();
  return 0;
}
