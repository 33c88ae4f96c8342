#include "tune/sweep.hpp"

#include <algorithm>
#include <array>
#include <limits>
#include <utility>

#include <fmt/format.h>

#include "core/reject.hpp"

namespace epistle {
namespace {

constexpr std::array<int, 9> kSmCounts = {4, 8, 12, 16, 24, 32, 48, 64, 96};
// From rows of one small block to more than any cache; the last one never goes past the caches.
constexpr std::array<std::int64_t, 5> kStreamBytes = {std::int64_t{64} << 10, std::int64_t{512} << 10,
                                                      std::int64_t{4} << 20, std::int64_t{32} << 20,
                                                      std::numeric_limits<std::int64_t>::max()};
constexpr int kMaxTriedBuffers = 3;

double tolerance(TunePolicy policy) noexcept {
  switch (policy) {
    case TunePolicy::kLatency:
      return 0.02;
    case TunePolicy::kBalanced:
      return 0.05;
    case TunePolicy::kThroughput:
      break;
  }
  return 0.0;
}

/// Makes values one by one.
class Values {
 public:
  explicit Values(ProfileSettings settings) : settings_(std::move(settings)) {}

  template <typename Change>
  void add(std::string text, double cost, const Change& change) {
    KnobValue value{.text = std::move(text), .settings = settings_, .cost = cost};
    change(value.settings);
    values_.push_back(std::move(value));
  }
  [[nodiscard]] std::vector<KnobValue> take() { return std::move(values_); }

 private:
  ProfileSettings settings_;
  std::vector<KnobValue> values_;
};

std::string bytes_text(std::int64_t num_bytes) {
  constexpr std::int64_t kKiB = 1 << 10;
  if (num_bytes < 0) return "auto";
  if (num_bytes == std::numeric_limits<std::int64_t>::max()) return "never";
  return fmt::format("{} KiB", num_bytes / kKiB);
}

std::vector<int> sm_counts(int max_sms) {
  std::vector<int> counts;
  for (const int count : kSmCounts) {
    if (count < max_sms) counts.push_back(count);
  }
  counts.push_back(max_sms);
  return counts;
}

std::vector<int> worker_counts(int max_workers) {
  std::vector<int> counts;
  for (int count = 1; count <= max_workers; count *= 2) counts.push_back(count);
  if (counts.back() != max_workers) counts.push_back(max_workers);
  return counts;
}

}  // namespace

std::string_view to_string(TunePolicy policy) noexcept {
  switch (policy) {
    case TunePolicy::kLatency:
      return "latency";
    case TunePolicy::kThroughput:
      return "throughput";
    case TunePolicy::kBalanced:
      return "balanced";
  }
  return "unknown";
}

double metric_us(const Summary& period_us, TunePolicy policy) noexcept {
  return policy == TunePolicy::kLatency ? period_us.p90 : period_us.median;
}

std::vector<std::string_view> knob_names(Device device) {
  if (device == Device::kHost) return {"dispatcher", "workers", "stream_bytes", "num_buffers"};
  return {"dispatcher", "mover", "sms", "num_buffers"};
}

Knob make_knob(std::string_view name, const ProfileSettings& settings, const KnobLimits& limits) {
  Knob knob{.name = std::string(name), .values = {}};
  Values values(settings);
  // The value that is set goes first, with nothing to compare it with; of a knob that costs it has its place.
  if (name == "dispatcher") {
    values.add(settings.dispatcher, 0, [](ProfileSettings&) {});
    for (const std::string& dispatcher : limits.dispatchers) {
      if (dispatcher == settings.dispatcher) continue;
      values.add(dispatcher, 0, [&](ProfileSettings& changed) { changed.dispatcher = dispatcher; });
    }
  } else if (name == "workers") {
    knob.costs = true;
    for (const int count : worker_counts(limits.max_workers)) {
      values.add(fmt::format("{}", count), count, [&](ProfileSettings& changed) { changed.host.num_workers = count; });
    }
  } else if (name == "stream_bytes") {
    values.add(bytes_text(settings.host.stream_bytes), 0, [](ProfileSettings&) {});
    for (const std::int64_t num_bytes : kStreamBytes) {
      values.add(bytes_text(num_bytes), 0, [&](ProfileSettings& changed) { changed.host.stream_bytes = num_bytes; });
    }
  } else if (name == "mover") {
    values.add(std::string(to_string(settings.cuda.mover)), 0, [](ProfileSettings&) {});
    for (const CudaMover mover : {CudaMover::kVector, CudaMover::kBulk}) {
      values.add(std::string(to_string(mover)), 0, [&](ProfileSettings& changed) { changed.cuda.mover = mover; });
    }
  } else if (name == "sms") {
    knob.costs = true;
    // As tuned: how many that are is the table's choice, so that any given number counts as less.
    values.add("as tuned", limits.max_sms + 1, [](ProfileSettings&) {});
    for (const int count : sm_counts(limits.max_sms)) {
      values.add(fmt::format("{}", count), count, [&](ProfileSettings& changed) { changed.cuda.num_sms = count; });
    }
  } else if (name == "num_buffers") {
    knob.costs = true;
    for (int count = limits.min_buffers; count < limits.min_buffers + kMaxTriedBuffers; ++count) {
      values.add(fmt::format("{}", count), count, [&](ProfileSettings& changed) { changed.num_buffers = count; });
    }
  } else {
    reject(fmt::format("there is no knob '{}'", name));
  }
  knob.values = values.take();
  return knob;
}

bool stops(const Knob& knob, const std::vector<KnobTrial>& trials) {
  if (!knob.costs || trials.size() <= static_cast<std::size_t>(kPatience)) return false;
  return std::all_of(trials.end() - kPatience, trials.end(),
                     [](const KnobTrial& trial) { return trial.verdict != "faster"; });
}

std::size_t choose(const Knob& knob, const std::vector<KnobTrial>& trials, TunePolicy policy) {
  std::size_t fastest = 0;
  for (std::size_t idx = 1; idx < trials.size(); ++idx) {
    // What is not shown to be faster is taken for noise.
    if (trials[idx].verdict == "faster" && trials[idx].relative < trials[fastest].relative) fastest = idx;
  }
  if (!knob.costs) return fastest;
  const double limit = trials[fastest].relative * (1.0 + tolerance(policy));
  std::size_t chosen = fastest;
  for (std::size_t idx = 0; idx < trials.size(); ++idx) {
    const bool cheaper = knob.values[trials[idx].value_idx].cost < knob.values[trials[chosen].value_idx].cost;
    if (trials[idx].relative <= limit && cheaper) chosen = idx;
  }
  return chosen;
}

std::optional<double> gain_per_unit_us(const Knob& knob, const KnobTrial& before, const KnobTrial& trial) {
  const double units = knob.values[trial.value_idx].cost - knob.values[before.value_idx].cost;
  if (!knob.costs || units <= 0.0) return std::nullopt;
  return (before.period_us.median - trial.period_us.median) / units;
}

}  // namespace epistle
