// What is counted, over which links.
#include "simulate/traffic.hpp"

#include <array>
#include <vector>

#include <gtest/gtest.h>

#include "simulate/requests_for_tests.hpp"

namespace epistle::simulate::test {
namespace {

/// Six ranks in domains of two.
TrafficCounter three_domains() { return TrafficCounter({.num_ranks = 6, .ranks_per_domain = 2}); }

TEST(Traffic, ARowTravelsOncePerExpertRankOrDomain) {
  TrafficCounter counter = three_domains();
  // Of rank 0: itself twice, its neighbour, both ranks of the second domain, one of them twice.
  counter.add_token(0, std::array{0, 0, 1, 2, 3, 3});
  EXPECT_EQ(counter.distinct_ranks(), 4.0);
  EXPECT_EQ(counter.distinct_domains(), 2.0);

  const LinkRows per_expert = counter.links(Travel::kPerExpert)[0];
  EXPECT_EQ(per_expert.self, 2);
  EXPECT_EQ(per_expert.domain_out, 1);
  EXPECT_EQ(per_expert.network_out, 3);
  EXPECT_EQ(per_expert.other_rail, 2);
  EXPECT_EQ(counter.links(Travel::kPerExpert)[3].network_in, 2);

  const LinkRows per_rank = counter.links(Travel::kPerRank)[0];
  EXPECT_EQ(per_rank.self, 1);
  EXPECT_EQ(per_rank.domain_out, 1);
  EXPECT_EQ(per_rank.network_out, 2);
  EXPECT_EQ(per_rank.other_rail, 1);

  // One row to the second domain, on the sender's rail, which rank 2 passes on to rank 3.
  EXPECT_EQ(counter.links(Travel::kPerDomain)[0].network_out, 1);
  EXPECT_EQ(counter.links(Travel::kPerDomain)[0].other_rail, 0);
  EXPECT_EQ(counter.links(Travel::kPerDomain)[2].network_in, 1);
  EXPECT_EQ(counter.links(Travel::kPerDomain)[2].domain_out, 1);
  EXPECT_EQ(counter.links(Travel::kPerDomain)[3].domain_in, 1);

  EXPECT_EQ(counter.ranks()[0].sent_rows, 4);
  EXPECT_EQ(counter.ranks()[0].sent_remote_rows, 3);
  EXPECT_EQ(counter.ranks()[0].sent_remote_assignments, 4);
  EXPECT_EQ(counter.ranks()[0].sent_domains, 2);
  EXPECT_EQ(counter.ranks()[3].received_rows, 1);
  EXPECT_EQ(counter.ranks()[3].assignments, 2);
}

TEST(Traffic, ARailThatASmallDomainLacksHasAGateway) {
  const RankGrid grid{.num_ranks = 5, .ranks_per_domain = 2};
  EXPECT_EQ(grid.num_domains(), 3);
  EXPECT_EQ(grid.gateway(1, 1), 3);
  EXPECT_EQ(grid.gateway(2, 1), 4);
}

TEST(Traffic, ForgetsNothingButWhatIsCleared) {
  TrafficCounter counter = three_domains();
  counter.add_token(5, std::array{5});
  counter.clear();
  EXPECT_EQ(counter.num_tokens(), 0);
  EXPECT_EQ(counter.distinct_ranks(), 0.0);
  counter.add_token(5, std::array{5, 4});
  EXPECT_EQ(counter.ranks()[5].sent_rows, 2);
  counter.add_token(4, {});
  EXPECT_EQ(counter.num_tokens(), 2);
  EXPECT_EQ(counter.distinct_ranks(), 1.0);
}

TEST(Traffic, WhatLeavesArrives) {
  const SimulateRequest request = small_request({.routing = "zipf:1", .num_ranks = 20});
  TokenSource source(request.tokens);
  source.begin_step(0);
  TrafficCounter counter({.num_ranks = 20, .ranks_per_domain = 8});
  for (std::int32_t rank = 0; rank < 20; ++rank) {
    const auto ids = source.ids(rank);
    for (std::size_t begin = 0; begin < ids.size(); begin += 4) {
      std::vector<std::int32_t> ranks;
      for (const std::int32_t expert : ids.subspan(begin, 4)) ranks.push_back(expert % 20);
      counter.add_token(rank, ranks);
    }
  }
  std::int64_t rows_per_rank = 0;
  for (const Travel travel : {Travel::kPerExpert, Travel::kPerRank, Travel::kPerDomain}) {
    LinkRows sum;
    for (const LinkRows& link : counter.links(travel)) {
      sum.self += link.self;
      sum.domain_out += link.domain_out;
      sum.domain_in += link.domain_in;
      sum.network_out += link.network_out;
      sum.network_in += link.network_in;
      EXPECT_LE(link.other_rail, link.network_out);
    }
    EXPECT_EQ(sum.domain_out, sum.domain_in);
    EXPECT_EQ(sum.network_out, sum.network_in);
    if (travel == Travel::kPerExpert) {
      EXPECT_EQ(sum.self + sum.domain_out + sum.network_out, 20 * 64 * 4);
    }
    if (travel == Travel::kPerRank) rows_per_rank = sum.self + sum.domain_out + sum.network_out;
  }
  EXPECT_NEAR(static_cast<double>(rows_per_rank), counter.distinct_ranks() * 20 * 64, 1e-6);
}

}  // namespace
}  // namespace epistle::simulate::test
