// How settings are chosen from what was measured.
#include "tune/sweep.hpp"

#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace epistle {
namespace {

Knob workers(int max_workers) {
  return make_knob("workers", {.dispatcher = "direct"}, {.dispatchers = {"direct"}, .max_workers = max_workers});
}

KnobTrial trial(std::size_t value_idx, double relative, std::string_view verdict) {
  KnobTrial made{.value_idx = value_idx, .period_us = {}};
  made.relative = relative;
  made.period_us.median = relative * 100;
  made.verdict = verdict;
  return made;
}

TEST(Sweep, ValuesAscendByCost) {
  const Knob knob = workers(6);
  ASSERT_EQ(knob.values.size(), 4U);
  const std::vector<int> expected = {1, 2, 4, 6};
  for (std::size_t idx = 0; idx < expected.size(); ++idx) {
    EXPECT_EQ(knob.values[idx].settings.host.num_workers, expected[idx]);
    EXPECT_EQ(knob.values[idx].cost, expected[idx]);
  }
  const Knob sms =
      make_knob("sms", {.dispatcher = "direct"}, {.dispatchers = {}, .device = Device::kCuda, .max_sms = 20});
  EXPECT_EQ(sms.values.front().settings.cuda.num_sms, 0);
  EXPECT_EQ(sms.values.back().settings.cuda.num_sms, 20);
  EXPECT_GT(sms.values.front().cost, sms.values.back().cost);
}

TEST(Sweep, EveryKnobOfADeviceKeepsTheOtherSettings) {
  for (const Device device : {Device::kHost, Device::kCuda}) {
    const ProfileSettings settings{.dispatcher = "direct", .host = {.num_workers = 2}, .num_buffers = 2};
    for (const std::string_view name : knob_names(device)) {
      const Knob knob = make_knob(
          name, settings, {.dispatchers = {"direct", "alltoall"}, .device = device, .max_workers = 2, .max_sms = 132});
      EXPECT_GE(knob.values.size(), 2U) << name;
      for (const KnobValue& value : knob.values) {
        if (name != "dispatcher") {
          EXPECT_EQ(value.settings.dispatcher, "direct");
        }
        if (name != "workers") {
          EXPECT_EQ(value.settings.host.num_workers, 2);
        }
        if (name != "num_buffers") {
          EXPECT_EQ(value.settings.num_buffers, 2);
        }
      }
    }
  }
}

TEST(Sweep, StopsWhereMoreBringsNothing) {
  const Knob knob = workers(8);
  std::vector<KnobTrial> trials = {trial(0, 1.0, "-"), trial(1, 1.0, "no difference shown")};
  EXPECT_FALSE(stops(knob, trials));
  trials.push_back(trial(2, 0.9, "faster"));
  EXPECT_FALSE(stops(knob, trials));
  trials[2].verdict = "slower";
  EXPECT_TRUE(stops(knob, trials));
  Knob free = knob;
  free.costs = false;
  EXPECT_FALSE(stops(free, trials));
}

TEST(Sweep, PoliciesTakeTheFastestOrTheCheapestBesideIt) {
  const Knob knob = workers(8);
  const std::vector<KnobTrial> trials = {trial(0, 1.0, "-"), trial(1, 0.515, "faster"), trial(2, 0.505, "faster"),
                                         trial(3, 0.5, "faster")};
  EXPECT_EQ(choose(knob, trials, TunePolicy::kThroughput), 3U);
  EXPECT_EQ(choose(knob, trials, TunePolicy::kLatency), 2U);
  EXPECT_EQ(choose(knob, trials, TunePolicy::kBalanced), 1U);
}

TEST(Sweep, NoiseIsNotTaken) {
  const Knob knob = workers(8);
  const std::vector<KnobTrial> trials = {trial(0, 1.0, "-"), trial(1, 0.98, "no difference shown")};
  for (const TunePolicy policy : {TunePolicy::kThroughput, TunePolicy::kLatency, TunePolicy::kBalanced}) {
    EXPECT_EQ(choose(knob, trials, policy), 0U) << to_string(policy);
  }
}

TEST(Sweep, GainIsPerUnit) {
  const Knob knob = workers(8);
  const auto gain = gain_per_unit_us(knob, trial(1, 1.0, "-"), trial(2, 0.8, "faster"));
  ASSERT_TRUE(gain.has_value());
  EXPECT_NEAR(*gain, 10.0, 1e-9);  // 20 us by two workers
}

TEST(Sweep, PoliciesWantTheMedianOrTheTail) {
  Summary period_us;
  period_us.median = 1.0;
  period_us.p90 = 2.0;
  EXPECT_EQ(metric_us(period_us, TunePolicy::kThroughput), 1.0);
  EXPECT_EQ(metric_us(period_us, TunePolicy::kLatency), 2.0);
}

}  // namespace
}  // namespace epistle
