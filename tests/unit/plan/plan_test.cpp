#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <set>
#include <string>

#include <gtest/gtest.h>

#include "epistle/dispatcher_info.hpp"
#include "epistle/error.hpp"

#include "cost/exchange_counts.hpp"
#include "plan/next_measurements.hpp"
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

std::set<std::int32_t> degrees_of(const PlanRequest& request) {
  std::set<std::int32_t> degrees;
  for (const Plan& plan : search_plans(request, priors())) degrees.insert(plan.choice.num_ranks);
  return degrees;
}

TEST(PlanSearch, LooksAtPartsOfADomainAndAtWholeDomainsWhateverTheirSize) {
  PlanRequest request = request_for("deepseek-v3", "gb200-nvl72");
  const std::set<std::int32_t> rack = degrees_of(request);
  for (const std::int32_t degree : {1, 8, 9, 12, 18, 24, 36, 64, 72, 144, 216, 256}) {
    EXPECT_TRUE(rack.contains(degree)) << degree;
  }
  request.cluster = find_cluster("h100-hgx");
  const std::set<std::int32_t> hosts = degrees_of(request);
  EXPECT_TRUE(hosts.contains(24));
  EXPECT_FALSE(hosts.contains(12));  // a host and a half
  request.num_gpus = 12;
  EXPECT_EQ(degrees_of(request), (std::set<std::int32_t>{1, 2, 3, 4, 6, 12}));
}

TEST(PlanSearch, ExpertsThatRanksCannotShareEvenlyCostWhatTheFullestRankHolds) {
  const PlanRequest request = request_for("deepseek-v3", "gb200-nvl72");
  const std::map<std::string, Plan> plans = by_name(search_plans(request, priors()));
  std::size_t num_uneven = 0;
  std::size_t num_copied = 0;
  for (const auto& [name, plan] : plans) {
    if (plan.choice.num_ranks != 72) continue;
    // 256 experts over 72 ranks: four on some, and 32 copies make it four on all.
    const std::map<std::int32_t, std::size_t*> counts = {{0, &num_uneven}, {32, &num_copied}};
    ++*counts.at(plan.choice.num_redundant);
    EXPECT_DOUBLE_EQ(plan.memory.expert_weights, 58.0 * 4 * 3 * 7168 * 2048) << name;
    EXPECT_GE(plan.counts.busiest_factor, 1.0) << name;
    if (plan.choice.num_redundant == 0) {
      EXPECT_NEAR(plan.counts.busiest_factor, 4 / (256.0 / 72), 1e-9) << name;
    }
    const bool refused_for_that =
        std::any_of(plan.refusals.begin(), plan.refusals.end(),
                    [](const std::string& reason) { return reason.find("equally many experts") != std::string::npos; });
    const bool peer = plan.choice.mode->name == std::string_view("deepep_low_latency");
    if (peer) {
      EXPECT_EQ(refused_for_that, plan.choice.num_redundant == 0) << name;
    }
  }
  EXPECT_GT(num_uneven, 0U);
  EXPECT_GT(num_copied, 0U);
}

TEST(PlanSearch, SaysWhatToMeasureAndWhatFlips) {
  const PlanRequest request = request_for("qwen3-235b-a22b", "h100-hgx");
  const std::vector<Plan> plans = search_plans(request, priors());
  const Plan& best = plans.front();
  EXPECT_EQ(find_flips(request, priors(), best).size(), 8U);
  const std::vector<CrossoverPoint> crossovers = find_crossovers(request, priors(), best);
  ASSERT_FALSE(crossovers.empty());
  EXPECT_EQ(crossovers.front().tokens, 1);
}

TEST(NextMeasurements, AreThreeToFiveCommandsThatRunAsTheyStand) {
  for (const char* const cluster : {"h100-hgx", "gb200-nvl72", "host", "a100", "mi300x"}) {
    SCOPED_TRACE(cluster);
    PlanRequest request = request_for("qwen3-30b-a3b", cluster);
    request.precision = ExpertType::kBf16;
    const std::vector<Plan> plans = search_plans(request, priors());
    ASSERT_FALSE(plans.empty());
    const std::vector<NextMeasurement> next = next_measurements(request, priors(), plans);
    EXPECT_GE(next.size(), 3U);
    EXPECT_LE(next.size(), 5U);
    EXPECT_TRUE(std::is_sorted(next.begin(), next.end(),
                               [](const auto& a, const auto& b) { return a.spread_us > b.spread_us; }));
    for (const NextMeasurement& measurement : next) {
      EXPECT_TRUE(measurement.command.starts_with("epistle ")) << measurement.command;
      EXPECT_TRUE(measurement.command.ends_with("--json " + measurement.file)) << measurement.command;
      const bool on_host = measurement.command.find("--device host") != std::string::npos;
      EXPECT_EQ(on_host, is_host(request.cluster)) << measurement.command;
    }
  }
}

TEST(PlanSearch, PartsAddUpToTermsAndTermsToLayers) {
  PlanRequest request = request_for("deepseek-v3", "h200-hgx");
  request.popularity = zipf_popularity(request.model.num_experts, 0.8);
  for (const Plan& plan : search_plans(request, priors())) {
    double sum_us = -plan.hidden_us;
    for (const PlanTerm& term : plan.terms) sum_us += term.us;
    EXPECT_NEAR(sum_us, plan.layer_us, 1e-6 * plan.layer_us) << plan.choice.name();
    for (const PlanTerm& term : plan.terms) {
      EXPECT_NEAR(std::accumulate(term.parts_us.begin(), term.parts_us.end(), 0.0), term.us, 1e-6 * term.us)
          << plan.choice.name() << " " << term.name;
    }
  }
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

}  // namespace
}  // namespace epistle::test
