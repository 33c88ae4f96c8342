#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include <gtest/gtest.h>

#include "epistle/dispatcher_info.hpp"
#include "epistle/error.hpp"

#include "cost/exchange_counts.hpp"
#include "plan/plan_search.hpp"

namespace epistle::test {
namespace {

PlanRequest request_for(std::string_view model, std::string_view cluster) {
  PlanRequest request;
  request.model = plan_model_of_preset(model);
  request.cluster = find_cluster(cluster);
  request.tokens_per_gpu = 32;
  return request;
}

const Calibration& priors() {
  static const Calibration calibration({});
  return calibration;
}

std::map<std::string, Plan> by_name(const std::vector<Plan>& plans) {
  std::map<std::string, Plan> names;
  for (const Plan& plan : plans) names.emplace(plan.choice.name(), plan);
  return names;
}

TEST(PlanSearch, RanksFeasiblePlansFirstAndSaysWhyNot) {
  const std::vector<Plan> plans = search_plans(request_for("qwen3-235b-a22b", "h100-hgx"), priors());
  ASSERT_FALSE(plans.empty());
  ASSERT_TRUE(plans.front().refusals.empty());
  bool refused = false;
  double last = plans.front().tokens_per_s_per_gpu;
  for (const Plan& plan : plans) {
    if (plan.refusals.empty()) {
      EXPECT_FALSE(refused) << plan.choice.name();
      EXPECT_LE(plan.tokens_per_s_per_gpu, last);
      EXPECT_LE(plan.memory.total(), plan.memory.limit);
      EXPECT_LE(plan.step_low_us, plan.step_us);
      EXPECT_GE(plan.step_high_us, plan.step_us);
      last = plan.tokens_per_s_per_gpu;
    } else {
      refused = true;
    }
  }
  EXPECT_TRUE(refused);
}

// What is concluded of this model in practice: EP 8 where a domain has eight GPUs.
TEST(PlanSearch, StaysInsideTheDomainOnHopper) {
  const Plan best = search_plans(request_for("qwen3-235b-a22b", "h100-hgx"), priors()).front();
  EXPECT_EQ(best.choice.num_ranks, 8) << best.choice.name();
}

TEST(PlanSearch, MoreBandwidthNeverMakesAPlanSlower) {
  for (const char* const model : {"qwen3-30b-a3b", "deepseek-v3"}) {
    PlanRequest request = request_for(model, "h200-hgx");
    request.popularity = zipf_popularity(request.model.num_experts, 0.7);
    const std::map<std::string, Plan> before = by_name(search_plans(request, priors()));
    for (const ClusterField field :
         {ClusterField::kLinkBytesPerS, ClusterField::kNicBytesPerS, ClusterField::kHbmBytesPerS}) {
      PlanRequest faster = request;
      faster.cluster.constant(field).value *= 1.7;
      for (const auto& [name, plan] : by_name(search_plans(faster, priors()))) {
        EXPECT_LE(plan.step_us, before.at(name).step_us * (1 + 1e-9)) << name;
      }
    }
  }
}

TEST(PlanSearch, NeverExceedsTheStatedMemory) {
  PlanRequest request = request_for("deepseek-v3", "h200-hgx");
  for (const double share : {0.3, 0.6, 0.9}) {
    request.memory_share = share;
    for (const Plan& plan : search_plans(request, priors())) {
      if (plan.refusals.empty()) {
        EXPECT_LE(plan.memory.total(), share * request.cluster.hbm_bytes()) << plan.choice.name();
      }
    }
  }
}

TEST(PlanSearch, RelabellingExpertsChangesNothingUnderUniformRouting) {
  PlanRequest request = request_for("qwen3-30b-a3b", "b200");
  const std::vector<Plan> even = search_plans(request, priors());
  request.popularity.assign(static_cast<std::size_t>(request.model.num_experts), 3.0);
  const std::map<std::string, Plan> stated = by_name(search_plans(request, priors()));
  for (const Plan& plan : even) {
    EXPECT_NEAR(stated.at(plan.choice.name()).step_us / plan.step_us, 1.0, 1e-6) << plan.choice.name();
  }
}

TEST(PlanSearch, CopiesOfHotExpertsEvenTheRanks) {
  PlanRequest request = request_for("qwen3-30b-a3b", "h200-hgx");
  request.popularity = zipf_popularity(request.model.num_experts, 1.0);
  const std::vector<double> inclusion = expert_inclusion(request);
  EXPECT_GT(planned_busiest_factor(inclusion, 16, 0), 1.2);
  EXPECT_LT(planned_busiest_factor(inclusion, 16, 16), planned_busiest_factor(inclusion, 16, 0));
  EXPECT_GE(planned_busiest_factor(inclusion, 16, 16), 1.0 - 1e-9);
}

TEST(PlanSearch, TakesBuffersOfOwnDispatchersFromTheirPlans) {
  const PlanRequest request = request_for("qwen3-30b-a3b", "h200-hgx");
  const ExchangeBuffers buffers = exchange_buffers(find_exchange_mode("direct"), request, 8, 32, 0);
  DispatcherConfig config;
  config.hidden = 2048;
  config.num_experts = 128;
  config.top_k = 8;
  config.max_tokens = 32;
  config.wire = Fp8Blocks{};
  config.sizing = Capacity{.rows_per_rank = 32 * 8};
  const MemoryPlan memory = find_dispatcher("direct", Device::kCuda).memory(config, 8);
  EXPECT_EQ(buffers.bytes, static_cast<double>(memory.largest_bytes(MemoryKind::kShared) +
                                               memory.largest_bytes(MemoryKind::kPrivate)));
  EXPECT_FALSE(buffers.refusal) << *buffers.refusal;
}

TEST(PlanSearch, KeepsLimitsAndNumbersOfGpus) {
  PlanRequest request = request_for("qwen3-30b-a3b", "h200-hgx");
  request.num_gpus = 24;
  request.max_step_us = 1;
  for (const Plan& plan : search_plans(request, priors())) {
    EXPECT_EQ(plan.choice.num_ranks * plan.choice.num_replicas, 24);
    ASSERT_FALSE(plan.refusals.empty());
    EXPECT_NE(plan.refusals.back().find("a step takes"), std::string::npos);
  }
}

TEST(PlanSearch, SaysWhatToMeasureAndWhatFlips) {
  const PlanRequest request = request_for("qwen3-235b-a22b", "h100-hgx");
  const Plan best = search_plans(request, priors()).front();
  const std::vector<NextMeasurement> next = next_measurements(request, priors(), best);
  EXPECT_GE(next.size(), 3U);
  EXPECT_LE(next.size(), 5U);
  EXPECT_TRUE(
      std::is_sorted(next.begin(), next.end(), [](const auto& a, const auto& b) { return a.spread_us > b.spread_us; }));
  EXPECT_EQ(find_flips(request, priors(), best).size(), 8U);
  const std::vector<CrossoverPoint> crossovers = find_crossovers(request, priors(), best);
  ASSERT_FALSE(crossovers.empty());
  EXPECT_EQ(crossovers.front().tokens, 1);
}

TEST(PlanSearch, RefusesNonsense) {
  PlanRequest request = request_for("qwen3-30b-a3b", "h200-hgx");
  request.dispatchers = {"carrier_pigeon"};
  EXPECT_THROW((void)search_plans(request, priors()), Error);
  request.dispatchers = {};
  request.tokens_per_gpu = 0;
  EXPECT_THROW((void)search_plans(request, priors()), Error);
  request.tokens_per_gpu = 1;
  request.popularity = {1, 2};
  EXPECT_THROW((void)search_plans(request, priors()), Error);
}

TEST(PlanModel, IsReadFromAConfig) {
  const PlanModel model = parse_plan_model(
      R"({"hidden_size": 4096, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 1536,
          "intermediate_size": 12288, "num_hidden_layers": 94, "num_attention_heads": 64, "num_key_value_heads": 4,
          "head_dim": 128, "vocab_size": 151936})",
      "config.json");
  const PlanModel preset = plan_model_of_preset("qwen3-235b-a22b");
  EXPECT_EQ(model.num_moe_layers, preset.num_moe_layers);
  EXPECT_EQ(model.kv_elements_per_token, preset.kv_elements_per_token);
  EXPECT_EQ(model.attention_elements, preset.attention_elements);
  EXPECT_FALSE(model.attention_is_assumed);
  for (const char* const text : {"[]", "{}", R"({"hidden_size": "wide"})", R"({"hidden_size": 1e30})"}) {
    try {
      (void)parse_plan_model(text, "config.json");
      ADD_FAILURE() << text;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kCorruptInput);
      EXPECT_TRUE(error.message().starts_with("config.json")) << error.message();
    }
  }
}

}  // namespace
}  // namespace epistle::test
