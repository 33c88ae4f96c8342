// Bytes, links and times of every dispatcher.
#include "simulate/mode_times.hpp"

#include <algorithm>
#include <map>
#include <numeric>
#include <string>

#include <gtest/gtest.h>

#include "plan/observations.hpp"
#include "simulate/requests_for_tests.hpp"

namespace epistle::simulate::test {
namespace {

std::map<std::string, ModeStep> modes_of(SimulateRequest request) {
  request.dispatchers.clear();
  std::map<std::string, ModeStep> modes;
  for (const ModeStep& mode : run_step(request).modes) modes.emplace(mode.mode->name, mode);
  return modes;
}

double moved(const ExchangeLoad& load) { return load.self_bytes + load.domain_bytes + load.network_bytes; }

TEST(ModeTimes, BytesAreThoseOfTheRows) {
  const SimulateRequest request = small_request();
  const StepResult step = run_step(request);
  const auto modes = modes_of(request);
  const double tokens = static_cast<double>(step.num_tokens);
  const double fp8_row = 2048 + 4.0 * 2048 / 128;
  const double bf16_row = 2 * 2048;
  const ModeStep& per_expert = modes.at("deepep_low_latency");
  EXPECT_NEAR(moved(per_expert.dispatch), tokens * 4 * fp8_row, 1);
  EXPECT_NEAR(moved(per_expert.combine), tokens * 4 * bf16_row, 1);
  const ModeStep& gather = modes.at("nccl_gather");
  EXPECT_NEAR(moved(gather.dispatch), tokens * 16 * bf16_row, 1);
  EXPECT_NEAR(gather.dispatch.network_bytes, tokens * 8 * bf16_row, 1);
  // One row per (token, domain) crosses the network, all on the sender's rail.
  const ModeStep& per_domain = modes.at("deepep");
  EXPECT_LT(per_domain.dispatch.network_bytes, per_expert.dispatch.network_bytes);
  EXPECT_EQ(per_domain.dispatch.other_rail_bytes, 0.0);
  EXPECT_GT(per_expert.dispatch.other_rail_bytes, 0.0);
  EXPECT_LE(per_domain.dispatch.network_bytes, tokens * fp8_row);
}

TEST(ModeTimes, NetworkBytesAreSplitByTheRailThatTheyLeaveBy) {
  SimulateRequest request = small_request();
  for (const auto& [name, mode] : modes_of(request)) {
    if (mode.refusal) continue;
    for (const ExchangeLoad* const load : {&mode.dispatch, &mode.combine}) {
      ASSERT_EQ(load->rail_bytes.size(), 8U) << name;
      EXPECT_NEAR(std::accumulate(load->rail_bytes.begin(), load->rail_bytes.end(), 0.0), load->network_bytes, 1.0);
    }
  }
  // Two GPUs share a card.
  request.cluster.constant(ClusterField::kNicsPerGpu).value = 0.5;
  EXPECT_EQ(modes_of(request).at("hybrid").dispatch.rail_bytes.size(), 4U);
  const auto inside = modes_of(small_request({.num_ranks = 8}));
  EXPECT_TRUE(inside.at("hybrid").dispatch.rail_bytes.empty());
}

TEST(ModeTimes, HybridPutsOneCopyPerTokenAndDomainOnTheNetwork) {
  const SimulateRequest request = small_request();
  const StepResult step = run_step(request);
  const ModeStep hybrid = modes_of(request).at("hybrid");
  ASSERT_FALSE(hybrid.refusal.has_value()) << *hybrid.refusal;
  EXPECT_EQ(hybrid.dispatch.network_bytes, modes_of(request).at("deepep").dispatch.network_bytes);
  EXPECT_EQ(hybrid.dispatch.other_rail_bytes, 0.0);
  // Of two domains every token has at most one elsewhere.
  const double fp8_row = 2048 + 4.0 * 2048 / 128;
  EXPECT_LE(hybrid.dispatch.network_bytes, static_cast<double>(step.num_tokens) * fp8_row);
  EXPECT_GT(hybrid.dispatch.network_bytes, 0.0);
}

TEST(ModeTimes, AModeThatCannotServeSaysWhy) {
  const auto modes = modes_of(small_request());
  EXPECT_NE(modes.at("direct").refusal.value().find("inside a domain of 8"), std::string::npos);
  const auto inside = modes_of(small_request({.num_ranks = 8, .tokens_per_rank = 2048}));
  EXPECT_FALSE(inside.at("direct").refusal.has_value());
  EXPECT_NE(inside.at("deepep_low_latency").refusal.value().find("at most 1024"), std::string::npos);
  SimulateRequest lonely = small_request();
  lonely.cluster.constant(ClusterField::kNicsPerGpu).value = 0;
  EXPECT_TRUE(modes_of(lonely).at("deepep").refusal.has_value());
}

TEST(ModeTimes, MoreBandwidthNeverMakesAnythingSlower) {
  for (const char* const routing : {"uniform", "zipf:1"}) {
    const SimulateRequest base = small_request({.routing = routing, .tokens_per_rank = 512});
    const auto before = modes_of(base);
    for (const ClusterField field : {ClusterField::kLinkBytesPerS, ClusterField::kNicBytesPerS,
                                     ClusterField::kNicsPerGpu, ClusterField::kHbmBytesPerS}) {
      SimulateRequest faster = base;
      faster.cluster.constant(field).value *= 2;
      for (const auto& [name, mode] : modes_of(faster)) {
        EXPECT_LE(mode.layer_us, before.at(name).layer_us * (1 + 1e-9)) << name;
      }
    }
  }
}

TEST(ModeTimes, ASharedCardIsContended) {
  SimulateRequest request = small_request({.tokens_per_rank = 1024});
  const auto own = modes_of(request);
  request.cluster.constant(ClusterField::kNicsPerGpu).value = 0.5;
  const auto shared = modes_of(request);
  const BusiestLink& link = shared.at("deepep").dispatch.busiest_link;
  EXPECT_TRUE(link.kind == LinkKind::kNetworkOut || link.kind == LinkKind::kNetworkIn);
  EXPECT_EQ(link.rank % 2, 0) << "the first of the two that share it";
  EXPECT_GT(link.bytes, own.at("deepep").dispatch.busiest_link.bytes);
  EXPECT_GT(shared.at("deepep").dispatch.us, own.at("deepep").dispatch.us);
}

TEST(ModeTimes, SkewMakesStragglers) {
  const auto even = modes_of(small_request({.routing = "balanced", .tokens_per_rank = 1024}));
  const auto skewed = modes_of(small_request({.routing = "zipf:1.2", .tokens_per_rank = 1024}));
  for (const char* const name : {"deepep", "nccl_alltoall", "hybrid_ep"}) {
    EXPECT_GE(even.at(name).straggler_factor, 1.0 - 1e-9);
    EXPECT_LT(even.at(name).straggler_factor, 1.1) << name;
    EXPECT_GT(skewed.at(name).straggler_factor, even.at(name).straggler_factor) << name;
    EXPECT_LE(skewed.at(name).layer_low_us, skewed.at(name).layer_us);
    EXPECT_GE(skewed.at(name).layer_high_us, skewed.at(name).layer_us);
  }
}

TEST(ModeTimes, RelabellingExpertsChangesNothingUnderUniformRouting) {
  SimulateRequest request = small_request({.tokens_per_rank = 4096});
  const StepResult straight = run_step(request);
  std::vector<std::int32_t> experts(64);
  for (std::int32_t slot = 0; slot < 64; ++slot) experts[static_cast<std::size_t>(slot)] = slot * 37 % 64;
  request.placement = balance::SlotTable::trivial(64, std::vector<std::int32_t>(16, 4));
  request.placement->expert = experts;
  const StepResult relabelled = run_step(request);
  EXPECT_NEAR(relabelled.distinct_ranks / straight.distinct_ranks, 1.0, 0.01);
  EXPECT_NEAR(relabelled.modes[0].layer_us / straight.modes[0].layer_us, 1.0, 0.02);
  EXPECT_NEAR(relabelled.closed_forms->distinct_ranks, straight.closed_forms->distinct_ranks, 1e-9);
}

TEST(ModeTimes, AgreeWithThePlansClosedFormUnderEvenRouting) {
  // Balanced tokens: what plans compute from means is what the slowest rank does here.
  const SimulateRequest request = small_request({.routing = "balanced", .num_ranks = 8, .tokens_per_rank = 1024});
  const ModeStep direct = modes_of(request).at("direct");
  const StepResult step = run_step(request);
  const ExchangeWork base = exchange_base(request.cluster, 8, 8);
  const ExchangeShape shape{.tokens_per_rank = 1024,
                            .num_ranks = 8,
                            .top_k = 4,
                            .distinct_ranks = step.distinct_ranks,
                            .distinct_domains = 1,
                            .row_bytes = 2048 + 4.0 * 2048 / 128,
                            .busiest_factor = 1};
  const ExchangeWork work = throughput_work(base, shape, direct.num_sms);
  const Forecast forecast =
      priors().predict("direct dispatch", exchange_observation(request.cluster, find_exchange_mode("direct"),
                                                               {.tokens = 1024,
                                                                .num_ranks = 8,
                                                                .num_sms = 1.0 * direct.num_sms,
                                                                .row_bytes = shape.row_bytes,
                                                                .num_experts = 64},
                                                               work));
  EXPECT_NEAR(direct.dispatch.us / forecast.us, 1.0, 0.03);
}

}  // namespace
}  // namespace epistle::simulate::test
