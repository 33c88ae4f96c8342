#include "migration_steps.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <utility>

#include <sched.h>

#include <fmt/format.h>

#include "epistle/dispatcher.hpp"
#include "epistle/group.hpp"
#include "epistle/migration.hpp"
#include "epistle/routing.hpp"

#include "routing/philox.hpp"

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
// A slice takes about as long as what separates steps of a model anyway.
constexpr std::int64_t kSliceBytes = std::int64_t{128} << 10;
constexpr int kSegmentSteps = 50;
constexpr double kTail = 0.99;

double quantile(std::vector<double>& values, double part) {
  if (values.empty()) return 0.0;
  const auto place = static_cast<std::size_t>(std::ceil(part * static_cast<double>(values.size()))) - 1;
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(place), values.end());
  return values[place];
}

/// Cores of this thread. Ranks have the first ones, one each, where there are more than that.
class Cores {
 public:
  Cores() {
    CPU_ZERO(&all_);
    if (::sched_getaffinity(0, sizeof(all_), &all_) != 0) return;
    for (int core = 0; core < CPU_SETSIZE; ++core) {
      if (CPU_ISSET(core, &all_)) cores_.push_back(core);
    }
  }

  [[nodiscard]] bool suffice() const { return cores_.size() > static_cast<std::size_t>(kNumRanks); }

  void pin(int rank) const {
    if (!suffice()) return;
    cpu_set_t own;
    CPU_ZERO(&own);
    CPU_SET(cores_[static_cast<std::size_t>(rank)], &own);
    (void)::sched_setaffinity(0, sizeof(own), &own);
  }

  /// Threads that are started now get the cores that no rank has.
  void leave_rank_cores() const {
    if (!suffice()) return;
    cpu_set_t others = all_;
    for (int rank = 0; rank < kNumRanks; ++rank) CPU_CLR(cores_[static_cast<std::size_t>(rank)], &others);
    (void)::sched_setaffinity(0, sizeof(others), &others);
  }

 private:
  cpu_set_t all_{};
  std::vector<int> cores_;
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

WeightStoreConfig store_config(CopyMode mode) {
  WeightStoreConfig config;
  config.num_experts = kNumExperts;
  config.expert_bytes = kExpertBytes;
  config.slot_experts = placement_of(false);
  config.low_priority = mode == CopyMode::kIdleThread;
  config.bytes_per_advance = mode == CopyMode::kBetweenSteps ? kSliceBytes : 0;
  return config;
}

/// One rank of a team that takes steps.
class Stepper {
 public:
  Stepper(Group& group, CopyMode mode, const Cores& cores)
      : group_(&group),
        cores_(&cores),
        dispatcher_(group, "direct", config()),
        store_(group, store_config(mode)),
        routing_(generate_routing(RoutingSpec::parse("uniform"), {.num_tokens = kNumTokens,
                                                                  .num_experts = kNumExperts,
                                                                  .top_k = kTopK,
                                                                  .rank = group.rank(),
                                                                  .num_ranks = kNumRanks,
                                                                  .seed = 1})),
        tokens_(static_cast<std::size_t>(kNumTokens) * kHidden, 1.0F),
        out_(tokens_.size()) {}

  struct StepTimes {
    double dispatch_us = 0.0;
    double step_us = 0.0;
  };

  StepTimes step() {
    const Clock::time_point start = Clock::now();
    (void)store_.advance();
    const Handle handle = dispatcher_.prepare({.expert_ids = routing_.ids(), .weights = routing_.probs()});
    // Ranks come to dispatch together: what one of them did before is no part of it.
    group_->barrier();
    const Clock::time_point begin = Clock::now();
    const Received received = dispatcher_.dispatch({.handle = handle, .tokens = rows_of(tokens_)});
    const Clock::time_point end = Clock::now();
    dispatcher_.combine({.received = received, .out = rows_of(out_)});
    const auto us = [](Clock::duration span) { return std::chrono::duration<double, std::micro>(span).count(); };
    return {us(end - begin), us(Clock::now() - start)};
  }

  void run_segment(bool moving, SegmentTimes& times) {
    std::vector<double>& own = (moving ? times.moving_us : times.quiet_us).emplace_back();
    for (int step_idx = 0; step_idx < kSegmentSteps; ++step_idx) {
      if (moving && store_.status().state != MigrationState::kCopying) begin(times);
      const StepTimes one = step();
      own.push_back(one.dispatch_us);
      (moving ? times.moving_steps_us : times.quiet_steps_us).push_back(one.step_us);
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
  void begin(SegmentTimes& times) {
    exchanged_ = !exchanged_;
    cores_->leave_rank_cores();
    (void)store_.begin(placement_of(exchanged_));
    cores_->pin(group_->rank());
    ++times.num_migrations;
    times.bytes_moved += store_.status().bytes_into_rank;
    (void)step();  // the first one after coming back to the core
  }

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
  const Cores* cores_;
  Dispatcher dispatcher_;
  WeightStore store_;
  RoutingTable routing_;
  std::vector<float> tokens_;
  std::vector<float> out_;
  bool exchanged_ = false;
};

double tail_of(const std::vector<std::vector<double>>& segments, const std::vector<std::size_t>& drawn) {
  std::vector<double> all;
  for (const std::size_t idx : drawn) all.insert(all.end(), segments[idx].begin(), segments[idx].end());
  return quantile(all, kTail);
}

}  // namespace

std::string_view to_string(CopyMode mode) noexcept {
  constexpr std::string_view kNames[] = {"idle thread", "thread", "between steps"};
  return kNames[static_cast<std::size_t>(mode)];
}

SegmentTimes measure_migration(CopyMode mode, double seconds) {
  const Cores cores;
  SegmentTimes times;
  run_thread_ranks(kNumRanks, [&](Group& group) {
    cores.pin(group.rank());
    Stepper stepper(group, mode, cores);
    SegmentTimes own;
    for (int step = 0; step < kSegmentSteps; ++step) (void)stepper.step();
    const auto end = Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
    while (!stepper.is_over(end)) {
      stepper.run_segment(false, own);
      stepper.run_segment(true, own);
    }
    own.is_pinned = cores.suffice();
    if (group.rank() == 0) times = std::move(own);
  });
  return times;
}

RatioInterval p99_ratio(const std::vector<std::vector<double>>& above, const std::vector<std::vector<double>>& below) {
  constexpr int kNumDraws = 400;
  constexpr double kOutside = 0.025;  // on each side
  const std::size_t num_segments = std::min(above.size(), below.size());
  if (num_segments == 0) return {};
  std::vector<std::size_t> drawn(num_segments);
  std::iota(drawn.begin(), drawn.end(), std::size_t{0});
  RatioInterval interval{.ratio = tail_of(above, drawn) / tail_of(below, drawn), .num_segments = num_segments};
  PhiloxStream stream{1, RandomAddress{}};
  std::vector<double> ratios;
  for (int draw = 0; draw < kNumDraws; ++draw) {
    for (std::size_t& idx : drawn) idx = stream.below(num_segments);
    ratios.push_back(tail_of(above, drawn) / tail_of(below, drawn));
  }
  interval.low = quantile(ratios, kOutside);
  interval.high = quantile(ratios, 1.0 - kOutside);
  return interval;
}

RatioInterval noise_of(const SegmentTimes& times) {
  std::vector<std::vector<double>> halves[2];
  for (std::size_t idx = 0; idx < times.quiet_us.size(); ++idx) halves[idx % 2].push_back(times.quiet_us[idx]);
  return p99_ratio(halves[0], halves[1]);
}

std::string to_text(const RatioInterval& interval) {
  return fmt::format("{:.3f} ({:.3f} to {:.3f})", interval.ratio, interval.low, interval.high);
}

std::vector<double> all_of(const std::vector<std::vector<double>>& segments) {
  std::vector<double> all;
  for (const std::vector<double>& segment : segments) all.insert(all.end(), segment.begin(), segment.end());
  return all;
}

std::string_view verdict_on(const RatioInterval& interval) noexcept {
  constexpr std::size_t kMinSegments = 20;
  if (interval.num_segments < kMinSegments) return "too few calls";
  if (interval.high <= kP99Goal) return "yes";
  if (interval.low > kP99Goal) return "no";
  return interval.ratio <= kP99Goal ? "yes, within noise" : "no, within noise";
}

}  // namespace epistle::bench
