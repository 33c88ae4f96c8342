// What a migration of weights does to the steps that go on meanwhile: `bench_migration [SECONDS]`. Segments with and
// without a migration take turns in one run, so that whatever else the machine does meets both alike.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "epistle/dispatcher.hpp"
#include "epistle/group.hpp"
#include "epistle/migration.hpp"
#include "epistle/routing.hpp"

#include "cost/fit/quantile.hpp"
#include "report/format.hpp"
#include "report/table.hpp"

namespace epistle::bench {
namespace {

using Clock = std::chrono::steady_clock;
using SlotExperts = std::vector<std::vector<std::int32_t>>;

constexpr int kNumRanks = 2;
constexpr std::int32_t kNumExperts = 16;
constexpr std::int32_t kTopK = 4;
constexpr std::int32_t kHidden = 2048;
constexpr std::int64_t kNumTokens = 256;
constexpr std::int64_t kExpertBytes = std::int64_t{4} << 20;
constexpr int kSegmentSteps = 50;
constexpr double kGoal = 1.05;

struct Times {
  std::vector<double> quiet_us;
  std::vector<double> moving_us;
  std::int64_t bytes_moved = 0;
  std::int64_t num_migrations = 0;
};

/// Experts in blocks, and with neighbours exchanged across the border: half of them move.
SlotExperts placement_of(bool exchanged) {
  SlotExperts slots(kNumRanks);
  for (std::int32_t expert = 0; expert < kNumExperts; ++expert) {
    const std::int32_t home = expert / (kNumExperts / kNumRanks);
    const bool moves = exchanged && expert % 2 == 0;
    slots[static_cast<std::size_t>(moves ? (home + 1) % kNumRanks : home)].push_back(expert);
  }
  return slots;
}

/// One rank of a team that takes steps.
class Stepper {
 public:
  Stepper(Group& group, bool low_priority)
      : group_(&group),
        dispatcher_(group, "direct", config()),
        store_(group, {.num_experts = kNumExperts,
                       .expert_bytes = kExpertBytes,
                       .slot_experts = placement_of(false),
                       .low_priority = low_priority}),
        routing_(generate_routing(RoutingSpec::parse("uniform"), {.num_tokens = kNumTokens,
                                                                  .num_experts = kNumExperts,
                                                                  .top_k = kTopK,
                                                                  .rank = group.rank(),
                                                                  .num_ranks = kNumRanks,
                                                                  .seed = 1})),
        tokens_(static_cast<std::size_t>(kNumTokens) * kHidden, 1.0F),
        out_(tokens_.size()) {}

  /// A step with what belongs to it: us.
  double step() {
    const Clock::time_point start = Clock::now();
    (void)store_.advance();
    const Handle handle = dispatcher_.prepare({.expert_ids = routing_.ids(), .weights = routing_.probs()});
    const Received received = dispatcher_.dispatch({.handle = handle, .tokens = rows_of(tokens_)});
    dispatcher_.combine({.received = received, .out = rows_of(out_)});
    return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
  }

  void run_segment(bool moving, Times& times) {
    for (int step_idx = 0; step_idx < kSegmentSteps; ++step_idx) {
      if (moving && store_.status().state != MigrationState::kCopying) {
        exchanged_ = !exchanged_;
        (void)store_.begin(placement_of(exchanged_));
        ++times.num_migrations;
        times.bytes_moved += store_.status().bytes_into_rank;
      }
      (moving ? times.moving_us : times.quiet_us).push_back(step());
    }
    // What still runs belongs to no quiet segment.
    while (store_.status().state == MigrationState::kCopying) (void)step();
  }

  [[nodiscard]] bool is_over(Clock::time_point end) {
    const bool own = Clock::now() >= end;
    bool all[kNumRanks] = {};
    group_->all_gather(&own, sizeof(own), static_cast<bool*>(all));
    return all[0];
  }

 private:
  static Rows rows_of(std::vector<float>& values) {
    return {.data = values.data(), .num_rows = kNumTokens, .hidden = kHidden, .dtype = DType::kFp32};
  }
  static DispatcherConfig config() {
    DispatcherConfig config;
    config.hidden = kHidden;
    config.num_experts = kNumExperts;
    config.top_k = kTopK;
    config.max_tokens = kNumTokens;
    config.input = DType::kFp32;
    return config;
  }

  Group* group_;
  Dispatcher dispatcher_;
  WeightStore store_;
  RoutingTable routing_;
  std::vector<float> tokens_;
  std::vector<float> out_;
  bool exchanged_ = false;
};

Times measure(bool low_priority, double seconds) {
  Times times;
  run_thread_ranks(kNumRanks, [&](Group& group) {
    Stepper stepper(group, low_priority);
    Times own;
    for (int step = 0; step < kSegmentSteps; ++step) (void)stepper.step();
    const auto end = Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
    for (bool moving = false; !stepper.is_over(end); moving = !moving) stepper.run_segment(moving, own);
    if (group.rank() == 0) times = std::move(own);
  });
  return times;
}

void print_times(double seconds) {
  Table table({{"copying thread", Align::kLeft},
               {"median", Align::kRight},
               {"median, moving", Align::kRight},
               {"p99", Align::kRight},
               {"p99, moving", Align::kRight},
               {"of p99", Align::kRight},
               {"migrations", Align::kRight},
               {"into a rank", Align::kRight},
               {"goal", Align::kRight},
               {"met", Align::kLeft}});
  for (const bool low_priority : {true, false}) {
    const Times times = measure(low_priority, seconds);
    const double quiet = quantile(times.quiet_us, 0.99);
    const double moving = quantile(times.moving_us, 0.99);
    const double ratio = quiet > 0.0 ? moving / quiet : 0.0;
    table.add_row({low_priority ? "low priority" : "normal", format_us(quantile(times.quiet_us, 0.5)),
                   format_us(quantile(times.moving_us, 0.5)), format_us(quiet), format_us(moving),
                   fmt::format("{:.3f}", ratio), format_count(times.num_migrations), format_bytes(times.bytes_moved),
                   fmt::format("{:.2f}", kGoal), ratio <= kGoal ? "yes" : "no"});
  }
  std::fputs(table.render().c_str(), stdout);
}

}  // namespace
}  // namespace epistle::bench

int main(int argc, char** argv) {
  constexpr double kDefaultSeconds = 5.0;
  const double seconds = argc > 1 ? std::strtod(argv[1], nullptr) : kDefaultSeconds;
  if (argc > 2 || !(seconds > 0.0)) {
    std::fputs("usage: bench_migration [SECONDS]\n", stderr);
    return 2;
  }
  epistle::bench::print_times(seconds);
  return 0;
}
