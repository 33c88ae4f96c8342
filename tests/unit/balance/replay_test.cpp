// Replays of made and, where there are some, recorded traces.
#include "balance/replay.hpp"

#include <gtest/gtest.h>

#include "epistle/error.hpp"

#include "routing/trace_reader.hpp"
#include "support/sanitizers.hpp"
#include "support/trace_files.hpp"

namespace epistle::balance {
namespace {

RoutingTable skewed_routing() {
  return generate_routing(RoutingSpec::parse("zipf:0.8"), {.num_tokens = 4096, .num_experts = 64, .top_k = 6});
}

ReplayRules rules_for(std::int32_t num_ranks, std::int32_t num_slots) {
  ReplayRules rules;
  rules.plan.cluster = Cluster::even(num_ranks, num_slots);
  rules.plan.expert_bytes = 3;
  rules.batch_tokens = 512;
  return rules;
}

TEST(Replay, PlansHelpOnWhatComesNext) {
  const RoutingTable table = skewed_routing();
  const ReplayRules rules = rules_for(8, 80);
  const ReplayResult none = replay(table, 3, Policy::kNone, rules);
  const ReplayResult eplb = replay(table, 3, Policy::kEplb, rules);
  const ReplayResult incremental = replay(table, 3, Policy::kIncremental, rules);
  const ReplayResult per_batch = replay(table, 3, Policy::kPerBatch, rules);
  EXPECT_EQ(none.layer, 3);
  EXPECT_EQ(none.batches.size(), 4U);
  EXPECT_EQ(none.num_copies, 0);
  EXPECT_EQ(none.replica_choice, ReplicaChoice::kSingle);
  EXPECT_NEAR(none.balancedness, none.bound, 1e-12);
  EXPECT_GT(eplb.balancedness, none.balancedness + 0.1);
  EXPECT_GT(incremental.balancedness, none.balancedness + 0.1);
  EXPECT_GE(per_batch.balancedness, 0.99);
  EXPECT_NEAR(per_batch.balancedness, per_batch.bound, 1e-12);
  for (const ReplayResult& result : {eplb, incremental, per_batch}) {
    EXPECT_LE(result.balancedness, result.bound + 1e-12);
    EXPECT_EQ(result.bytes, 3 * result.num_copies);
    EXPECT_GE(result.num_copies, 16);  // as many slots were empty
  }
}

TEST(Replay, WindowsCopyOnlyWhatTheyMust) {
  const RoutingTable table = skewed_routing();
  ReplayRules rules = rules_for(8, 80);
  const std::int64_t first = replay(table, 0, Policy::kIncremental, rules).num_copies;
  rules.plan_on = PlanOn::kWindows;
  const ReplayResult incremental = replay(table, 0, Policy::kIncremental, rules);
  const ReplayResult eplb = replay(table, 0, Policy::kEplb, rules);
  EXPECT_LE(incremental.num_copies, first + 8);
  EXPECT_GT(eplb.num_copies, 2 * incremental.num_copies);
}

TEST(Replay, PrefetchReachesTheMeanFromAnyPlacement) {
  ReplayRules rules = rules_for(8, 64);
  rules.prefetch_per_rank = 3;
  const ReplayResult result = replay(skewed_routing(), 0, Policy::kPerBatch, rules);
  EXPECT_GE(result.balancedness, 0.98);
  EXPECT_GT(result.num_copies, 0);
}

TEST(Replay, NearReplicasKeepMoreTokensAtHome) {
  ReplayRules rules = rules_for(8, 96);
  const ReplayResult plain = replay(skewed_routing(), 0, Policy::kIncremental, rules);
  rules.prefers_near = true;
  const ReplayResult near = replay(skewed_routing(), 0, Policy::kIncremental, rules);
  EXPECT_GT(near.near_share, plain.near_share);
  EXPECT_GT(near.balancedness, plain.balancedness - 0.03);
}

TEST(Replay, CountsActivatedExperts) {
  ReplayRules rules = rules_for(8, 80);
  rules.plan.objective = Objective::kActivatedExperts;
  rules.batch_tokens = 16;
  const ReplayResult result = replay(skewed_routing(), 0, Policy::kPerBatch, rules);
  EXPECT_GT(result.balancedness, replay(skewed_routing(), 0, Policy::kNone, rules).balancedness);
}

TEST(Replay, RefusesLessThanABatch) {
  ReplayRules rules = rules_for(8, 80);
  rules.batch_tokens = 4096;
  test::expect_error(ErrorCode::kInvalidArgument, {"less than a batch of 4096"},
                     [&] { (void)replay(skewed_routing(), 0, Policy::kNone, rules); });
  rules = rules_for(7, 80);
  test::expect_error(ErrorCode::kInvalidArgument, {"EPLB needs equally many slots"},
                     [&] { (void)replay(skewed_routing(), 0, Policy::kEplb, rules); });
}

TEST(Replay, RecordedTracesReachTheirGoals) {
  const std::vector<std::string> paths = test::recorded_traces();
  if (paths.empty()) GTEST_SKIP() << "no recorded traces on this machine";
  for (const std::string& path : paths) {
    SCOPED_TRACE(path);
    double eplb = 0.0;
    double incremental = 0.0;
    double per_batch = 0.0;
    int num_layers = 0;
    read_trace_layers(path, [&](TraceLayer&& layer) {
      // Every fifth layer is enough for a test; the goal of a mean over them says nothing of fewer.
      constexpr std::int32_t kEvery = epistle::testing::kInstrumented ? 13 : 5;
      if (layer.layer % kEvery != 0 || layer.table.num_tokens < 4 * 2048) return;
      ReplayRules rules = rules_for(8, 80);
      rules.batch_tokens = 2048;
      rules.plan.num_candidates = 64;
      eplb += replay(layer.table, layer.layer, Policy::kEplb, rules).balancedness;
      incremental += replay(layer.table, layer.layer, Policy::kIncremental, rules).balancedness;
      per_batch += replay(layer.table, layer.layer, Policy::kPerBatch, rules).balancedness;
      ++num_layers;
    });
    if (num_layers == 0) continue;
    EXPECT_GE(per_batch / num_layers, 0.99);
    if (!epistle::testing::kInstrumented) {
      EXPECT_GE(incremental / num_layers, 0.93);
    }
    EXPECT_GE(incremental / num_layers, eplb / num_layers - 0.01);
  }
}

}  // namespace
}  // namespace epistle::balance
