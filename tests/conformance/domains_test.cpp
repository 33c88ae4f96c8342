// Groups whose ranks are in several domains: what crosses them gives the same bits, and puts on the links what the
// layout predicts.
#include <iostream>
#include <string>
#include <tuple>
#include <vector>

#include <gtest/gtest.h>

#include "epistle/group.hpp"
#include "epistle/routing.hpp"

#include "support/dispatcher_names.hpp"
#include "support/named_scenarios.hpp"
#include "support/player.hpp"
#include "support/process_ranks.hpp"
#include "support/round_trip.hpp"

namespace epistle::testing {
namespace {

constexpr int kDomainRanks = 4;

void expect_no_mismatch(const std::vector<Mismatch>& mismatches, const std::string& what) {
  for (std::size_t rank = 0; rank < mismatches.size(); ++rank) {
    EXPECT_FALSE(mismatches[rank].has_value()) << what << ", rank " << rank << ": " << *mismatches[rank];
  }
}

class HybridDomains : public ::testing::TestWithParam<int> {};

TEST_P(HybridDomains, GiveTheBitsOfTheReferenceOverThreads) {
  for (const NamedScenario& named : scenarios_in_domains(kDomainRanks, GetParam())) {
    expect_no_mismatch(play_over_threads("hybrid", named.scenario), named.name);
  }
}

TEST_P(HybridDomains, GiveTheSameInHalves) {
  for (const NamedScenario& named : scenarios_in_domains(kDomainRanks, GetParam())) {
    if (named.name.find("Fp8") == std::string::npos) continue;
    expect_no_mismatch(play_over_threads("hybrid", named.scenario, {.split_halves = true}), named.name);
  }
}

TEST_P(HybridDomains, GiveTheBitsOfTheReferenceOverProcesses) {
  const std::vector<NamedScenario> scenarios = scenarios_in_domains(kDomainRanks, GetParam());
  // One group for all: to start processes takes longer than most of the scenarios.
  const auto play = [&](Group& group) {
    for (const NamedScenario& named : scenarios) {
      const Mismatch mismatch = play_rank(group, "hybrid", named.scenario);
      if (!mismatch) continue;
      std::cerr << named.name << ", rank " << group.rank() << ": " << *mismatch << std::endl;
      return 1;
    }
    return 0;
  };
  const std::vector<int> exits = run_process_ranks(kDomainRanks, play, {.domain_size = GetParam()});
  for (std::size_t rank = 0; rank < exits.size(); ++rank) EXPECT_EQ(exits[rank], 0) << "exit of rank " << rank;
}

INSTANTIATE_TEST_SUITE_P(Sizes, HybridDomains, ::testing::Values(1, 2, 4));

TEST(HybridChunks, ArePassedOnAsTheyArrive) {
  Scenario scenario;
  scenario.config = small_config();
  scenario.config.hidden = 16'384;  // eight rows make a chunk
  scenario.config.layout = ExpertMajor{.alignment = 8};
  scenario.config.order = SumOrder::kDomains;
  scenario.tokens_per_rank = {20, 3, 12, 33};
  scenario.num_workers = 2;
  scenario.num_rounds = 1;
  for (const int domain_size : {1, 2}) {
    scenario.domain_size = domain_size;
    expect_no_mismatch(play_over_threads("hybrid", scenario), "many chunks");
  }
}

/// Eight ranks as on two machines of four GPUs, and the other way round.
TEST(HybridDomainsOfEight, GiveTheBitsOfTheReference) {
  for (const int domain_size : {2, 4}) {
    for (const OutputLayout layout :
         {OutputLayout::kTokenMajor, OutputLayout::kExpertMajor, OutputLayout::kExpertBlocks}) {
      Scenario scenario;
      scenario.config = small_config();
      scenario.config.num_experts = 24;
      scenario.config.top_k = 6;
      set_layout(scenario.config, layout, SizingMode::kExact, 320, 4);
      scenario.config.order = SumOrder::kDomains;
      scenario.config.num_buffers = 2;
      scenario.domain_size = domain_size;
      scenario.tokens_per_rank = {20, 40, 0, 7, 33, 1, 40, 16};
      expect_no_mismatch(play_over_threads("hybrid", scenario), std::string(to_string(layout)));
    }
  }
}

/// Those that address all ranks' memory go on doing so where domains are only declared.
class AnyDispatcherOverDomains : public ::testing::TestWithParam<std::string> {};

TEST_P(AnyDispatcherOverDomains, SumsByDomain) {
  for (const OutputLayout layout :
       {OutputLayout::kTokenMajor, OutputLayout::kExpertMajor, OutputLayout::kExpertBlocks}) {
    Scenario scenario;
    scenario.config = small_config();
    set_layout(scenario.config, layout, SizingMode::kExact, 160, 4);
    scenario.config.order = SumOrder::kDomains;
    scenario.domain_size = 2;
    scenario.tokens_per_rank = {20, 40, 0, 7, 33, 12};
    scenario.config.top_k = 6;
    scenario.odd_values = true;
    expect_no_mismatch(play_over_threads(GetParam(), scenario), std::string(to_string(layout)));
  }
}

INSTANTIATE_TEST_SUITE_P(All, AnyDispatcherOverDomains, ::testing::ValuesIn(dispatcher_names()));

// ---- Errors ---------------------------------------------------------------------------------------------------------

TEST(HybridDomains, RefuseOrdersThatTheyWouldHaveToGiveUpTheirSumsFor) {
  const DispatcherInfo& info = find_dispatcher("hybrid");
  DispatcherConfig config = small_config();
  EXPECT_FALSE(info.cannot_serve(config, 4, 2).has_value());
  for (const SumOrder order : {SumOrder::kHierarchical, SumOrder::kFlat, SumOrder::kDeepEpV2}) {
    config.order = order;
    const auto reason = info.cannot_serve(config, 4, 2);
    ASSERT_TRUE(reason.has_value()) << to_string(order);
    for (const std::string_view part : {std::string_view("domains"), to_string(order), std::string_view("direct")}) {
      EXPECT_NE(reason->find(part), std::string::npos) << *reason;
    }
    EXPECT_FALSE(info.cannot_serve(config, 4, 4).has_value()) << to_string(order);
  }
  EXPECT_TRUE(info.cannot_serve(small_config(), 4, 3).has_value());
}

TEST(HybridDomains, TakeTheirOwnOrderWhereNoneIsNamed) {
  const auto check = [](Group& group) {
    Dispatcher hybrid(group, "hybrid", small_config());
    Dispatcher direct(group, "direct", small_config());
    EXPECT_EQ(hybrid.config().order, SumOrder::kDomains);
    EXPECT_EQ(direct.config().order, SumOrder::kHierarchical);
  };
  run_thread_ranks(kDomainRanks, check, {.domain_size = 2});
}

TEST(HybridDomains, StayUsableAfterABadRequest) {
  const auto check = [](Group& group) {
    Dispatcher dispatcher(group, "hybrid", small_config());
    const std::vector<std::int32_t> bad(3, 99);
    const std::vector<std::int32_t> good = {0, 3, 7};
    const IdsView ids(group.rank() == 1 ? bad.data() : good.data(), 1, 3);
    const Outcome refused = outcome_of([&] { (void)dispatcher.prepare({.expert_ids = ids}); });
    ASSERT_TRUE(refused.has_value());
    EXPECT_EQ(refused->code(), group.rank() == 1 ? ErrorCode::kInvalidArgument : ErrorCode::kPeerRejected);
    const Handle handle = dispatcher.prepare({.expert_ids = IdsView(good.data(), 1, 3)});
    EXPECT_EQ(handle.wait_stats().sent_rows, 3);
  };
  run_thread_ranks(kDomainRanks, check, {.domain_size = 2});
}

// ---- Bytes ----------------------------------------------------------------------------------------------------------

/// What a rank's tokens need, counted from its table.
struct ExpectedBytes {
  std::int64_t domain_pairs = 0;  ///< (token, other domain)
  LinkBytes rows;                 ///< rows by link; those that cross, too
};

ExpectedBytes count_links(const RoutingTable& table, int rank, const Group& group) {
  const ExpertPartition partition{table.num_experts, group.size()};
  ExpectedBytes expected;
  for (std::int64_t token = 0; token < table.num_tokens; ++token) {
    std::vector<bool> has_rank(static_cast<std::size_t>(group.size()));
    std::vector<bool> has_domain(static_cast<std::size_t>(group.num_domains()));
    for (std::int32_t position = 0; position < table.top_k; ++position) {
      const std::int32_t expert = table.expert_ids[static_cast<std::size_t>(token * table.top_k + position)];
      has_rank[static_cast<std::size_t>(partition.rank_of(expert))] = true;
    }
    for (int peer = 0; peer < group.size(); ++peer) {
      if (!has_rank[static_cast<std::size_t>(peer)]) continue;
      const int domain = group.domain_of(peer);
      const bool is_new = !has_domain[static_cast<std::size_t>(domain)];
      has_domain[static_cast<std::size_t>(domain)] = true;
      if (is_new && domain != group.domain_of(rank)) ++expected.domain_pairs;
      const bool stays = group.index_in_domain(peer) == group.index_in_domain(rank);
      ++(stays ? expected.rows.own : expected.rows.domain);
    }
  }
  expected.rows.network = expected.domain_pairs;
  return expected;
}

TEST(HybridBytes, OnTheNetworkAreOneRowAndOneHeaderPerTokenAndDomain) {
  constexpr std::int64_t kTokens = 96;
  DispatcherConfig config{.hidden = 512, .num_experts = 32, .top_k = 8, .max_tokens = kTokens};
  config.wire = Fp8Blocks{};
  const std::int64_t row_bytes = 512 + 512 / 128 * 4;
  const std::int64_t sum_bytes = 512 * 2;
  const std::int64_t record_bytes = 8 + 8 * 8;  // rank and token; an expert and a weight for each of the top-k
  for (const int domain_size : {1, 2, 4}) {
    std::vector<std::int64_t> returned(8);
    std::vector<std::int64_t> wanted(8);
    const auto check = [&](Group& group) {
      const auto rank = static_cast<std::size_t>(group.rank());
      const RoutingTable table = generate_routing(
          {.kind = RoutingKind::kUniform},
          {.num_tokens = kTokens, .num_experts = 32, .top_k = 8, .rank = group.rank(), .num_ranks = group.size()});
      const ExpectedBytes expected = count_links(table, group.rank(), group);
      Dispatcher dispatcher(group, "hybrid", config);
      const Handle handle = dispatcher.prepare({.expert_ids = table.ids(), .weights = table.probs()});
      const WireBytes wire = dispatcher.wire_bytes(handle);
      EXPECT_EQ(wire.header_bytes, expected.domain_pairs * record_bytes);
      EXPECT_EQ(dispatcher.network_bytes(), wire.header_bytes);
      EXPECT_EQ(wire.dispatch_links.network, expected.rows.network * row_bytes);
      EXPECT_EQ(wire.dispatch_links.domain, expected.rows.domain * row_bytes);
      EXPECT_EQ(wire.dispatch_links.own, expected.rows.own * row_bytes);
      EXPECT_EQ(wire.combine_links.network, expected.rows.network * sum_bytes);
      EXPECT_EQ(wire.dispatch, wire.dispatch_links.domain + wire.dispatch_links.network);
      const std::vector<std::uint16_t> tokens(static_cast<std::size_t>(kTokens * 512));
      const Received received =
          dispatcher.dispatch({.handle = handle, .tokens = {tokens.data(), kTokens, 512, DType::kBf16}});
      const std::int64_t after_dispatch = dispatcher.network_bytes();
      EXPECT_EQ(after_dispatch, wire.header_bytes + wire.dispatch_links.network);
      std::vector<std::uint16_t> out(tokens.size());
      dispatcher.combine({.received = received, .out = {out.data(), kTokens, 512, DType::kBf16}});
      // A rank returns the sums of others; over all ranks it is what their layouts predict.
      returned[rank] = dispatcher.network_bytes() - after_dispatch;
      wanted[rank] = wire.combine_links.network;
    };
    run_thread_ranks(8, check, {.domain_size = domain_size});
    std::int64_t sum_returned = 0;
    std::int64_t sum_wanted = 0;
    for (std::size_t rank = 0; rank < returned.size(); ++rank) {
      sum_returned += returned[rank];
      sum_wanted += wanted[rank];
    }
    EXPECT_EQ(sum_returned, sum_wanted) << "domains of " << domain_size;
    EXPECT_GT(sum_wanted, 0);
  }
}

TEST(HybridBytes, OfMemoryAreThoseThatTheInfoPredicts) {
  DispatcherConfig config = small_config();
  config.sizing = Capacity{.rows_per_rank = 160};
  const MemoryPlan plan = find_dispatcher("hybrid").memory(config, kDomainRanks, 2);
  const MemoryPlan one_domain = find_dispatcher("hybrid").memory(config, kDomainRanks);
  EXPECT_GT(plan.initial_bytes(MemoryKind::kShared), one_domain.initial_bytes(MemoryKind::kShared));
  const auto check = [&](Group& group) {
    const Dispatcher dispatcher(group, "hybrid", config);
    EXPECT_EQ(dispatcher.shared_bytes(), plan.initial_bytes(MemoryKind::kShared));
    EXPECT_EQ(dispatcher.resident_bytes(), dispatcher.shared_bytes());
  };
  run_thread_ranks(kDomainRanks, check, {.domain_size = 2});
}

}  // namespace
}  // namespace epistle::testing
