// Who passes what on across domains, as tables: what a GPU is told is what a walk over all ranks' tokens finds.
#include "dispatch/link/route_tables.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <numeric>
#include <tuple>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "support/random_scenario.hpp"

namespace epistle {
namespace {

using epistle::testing::Draw;

constexpr std::int32_t kTopK = 5;
constexpr std::int32_t kNumExperts = 18;

/// Where one rank's tokens go.
struct Places {
  std::int64_t num_tokens = 0;
  std::vector<std::int32_t> expert_ids;
  std::vector<std::int32_t> rows;
  std::vector<float> weights;

  [[nodiscard]] TokenPlacesView view() const { return {num_tokens, expert_ids, rows, weights}; }
};

DispatchLayout layout_of(OutputLayout layout, int num_ranks, int domain_size) {
  LayoutParams params;
  params.num_ranks = num_ranks;
  params.domain_size = domain_size;
  params.num_experts = kNumExperts;
  params.top_k = kTopK;
  params.max_tokens = 40;
  params.layout = layout;
  return DispatchLayout(params);
}

/// Random tokens, some places of which are empty or dropped. In token_major all of a token's places on a rank have one
/// row.
Places draw_places(const DispatchLayout& layout, std::uint64_t seed) {
  Draw draw(seed);
  Places places;
  places.num_tokens = draw.between(0, layout.params().max_tokens);
  for (std::int64_t token = 0; token < places.num_tokens; ++token) {
    std::vector<std::int32_t> experts(kNumExperts);
    std::iota(experts.begin(), experts.end(), 0);
    std::map<int, std::int32_t> row_of_rank;
    for (std::int32_t position = 0; position < kTopK; ++position) {
      std::swap(experts[static_cast<std::size_t>(position)],
                experts[static_cast<std::size_t>(draw.between(position, kNumExperts - 1))]);
      const std::int32_t expert = experts[static_cast<std::size_t>(position)];
      const bool is_missing = draw.one_in(5);
      std::int32_t row = draw.one_in(6) ? -1 : static_cast<std::int32_t>(draw.between(0, 999));
      if (layout.token_major()) row = row_of_rank.try_emplace(layout.partition().rank_of(expert), row).first->second;
      places.expert_ids.push_back(is_missing ? kNoExpert : expert);
      places.rows.push_back(is_missing ? -1 : row);
      places.weights.push_back(static_cast<float>(draw.between(-8, 8)) * 0.25F);
    }
  }
  return places;
}

/// The tables of all ranks, as the exchange makes them.
std::vector<RouteTables> make_tables(const DispatchLayout& layout, const Domains& domains,
                                     const std::vector<Places>& places) {
  std::vector<RouteTables> tables;
  std::vector<std::int32_t> counts;
  for (int rank = 0; rank < domains.num_ranks(); ++rank) {
    tables.emplace_back(layout, domains, rank, places[static_cast<std::size_t>(rank)].view());
    counts.insert(counts.end(), tables.back().counts().begin(), tables.back().counts().end());
  }
  for (RouteTables& table : tables) table.set_pairs(DomainPairs(domains, counts));
  for (int rank = 0; rank < domains.num_ranks(); ++rank) {
    const auto idx = static_cast<std::size_t>(rank);
    for (int domain = 0; domain < domains.count(); ++domain) {
      if (domain == domains.domain_of(rank)) continue;
      std::vector<std::byte> records(
          static_cast<std::size_t>(tables[idx].pairs().num(rank, domain) * route_record_bytes(kTopK)));
      tables[idx].write_records(domain, places[idx].view(), records.data());
      const int peer = domains.rank_at(domain, domains.index_of(rank));
      tables[static_cast<std::size_t>(peer)].read_records(domains.domain_of(rank), records.data());
    }
    tables[idx].fill_own(places[idx].view());
  }
  return tables;
}

/// What a token has in a domain: (rank, row) of every place, in top-k order.
std::vector<std::pair<int, std::int32_t>> rows_in_domain(const DispatchLayout& layout, const Domains& domains,
                                                         const Places& places, std::int64_t token, int domain) {
  std::vector<std::pair<int, std::int32_t>> rows;
  for (std::int32_t position = 0; position < kTopK; ++position) {
    const auto entry = static_cast<std::size_t>(token * kTopK + position);
    if (places.rows[entry] < 0) continue;
    const int rank = layout.partition().rank_of(places.expert_ids[entry]);
    if (domains.domain_of(rank) == domain) rows.emplace_back(rank, places.rows[entry]);
  }
  return rows;
}

using Shape = std::tuple<OutputLayout, int, int>;

class RouteTablesOf : public ::testing::TestWithParam<Shape> {};

TEST_P(RouteTablesOf, EveryTokenHasItsRowsAtWhoPassesThemOn) {
  const auto [kind, num_ranks, domain_size] = GetParam();
  const DispatchLayout layout = layout_of(kind, num_ranks, domain_size);
  const Domains domains(num_ranks, domain_size);
  for (std::uint64_t seed = 0; seed < 8; ++seed) {
    std::vector<Places> places;
    for (int rank = 0; rank < num_ranks; ++rank) {
      places.push_back(draw_places(layout, seed * 97 + static_cast<std::uint64_t>(rank)));
    }
    const std::vector<RouteTables> tables = make_tables(layout, domains, places);
    for (int rank = 0; rank < num_ranks; ++rank) {
      const RouteTables& own = tables[static_cast<std::size_t>(rank)];
      const Places& of_rank = places[static_cast<std::size_t>(rank)];
      const auto slots = static_cast<std::size_t>(layout.max_domains_per_token());
      std::vector<std::int64_t> next(static_cast<std::size_t>(domains.count()), 0);
      for (std::int64_t token = 0; token < of_rank.num_tokens; ++token) {
        std::size_t slot = static_cast<std::size_t>(token) * slots;
        for (int domain = 0; domain < domains.count(); ++domain) {
          const auto rows = rows_in_domain(layout, domains, of_rank, token, domain);
          if (rows.empty()) continue;
          const std::int64_t idx = next[static_cast<std::size_t>(domain)]++;
          const int peer = domains.rank_at(domain, domains.index_of(rank));
          const RouteTables& there = tables[static_cast<std::size_t>(peer)];
          const bool stays = peer == rank;
          const DomainPairs& pairs = own.pairs();
          const std::int64_t sent = stays ? idx : pairs.first_sent(rank, domain) + idx;
          ASSERT_EQ(own.token_rows()[slot].domain, domain);
          ASSERT_EQ(own.token_rows()[slot++].row, sent);
          ASSERT_EQ((stays ? own.own_tokens() : own.sent_tokens())[static_cast<std::size_t>(sent)], token);
          const std::int64_t entry =
              stays ? pairs.num_received(rank) + idx : pairs.first_received(peer, domains.domain_of(rank)) + idx;
          std::vector<std::pair<int, std::int32_t>> found;
          int last_rank = -1;
          for (std::int32_t term = 0; term < kTopK; ++term) {
            const RouteTerm& at = there.terms()[static_cast<std::size_t>(entry * kTopK + term)];
            if (at.rank < 0) continue;
            ASSERT_EQ(domains.domain_of(at.rank), domain);
            ASSERT_GE(at.rank, last_rank);
            ASSERT_EQ((at.flags & RouteTerm::kFirst) != 0, at.rank != last_rank);
            last_rank = at.rank;
            found.emplace_back(at.rank, at.row);
          }
          // The same rows, by rank; token rows once for each.
          std::vector<std::pair<int, std::int32_t>> wanted = rows;
          std::stable_sort(wanted.begin(), wanted.end(),
                           [](const auto& left, const auto& right) { return left.first < right.first; });
          if (layout.token_major()) wanted.erase(std::unique(wanted.begin(), wanted.end()), wanted.end());
          ASSERT_EQ(found, wanted);
        }
        for (; slot < static_cast<std::size_t>(token + 1) * slots; ++slot) ASSERT_EQ(own.token_rows()[slot].domain, -1);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, RouteTablesOf,
                         ::testing::Combine(::testing::Values(OutputLayout::kTokenMajor, OutputLayout::kExpertMajor),
                                            ::testing::Values(6), ::testing::Values(1, 2, 3)));

/// One token with places on ranks 3, 2, 3 of the second domain of two.
TEST(RouteTables, SumTheWeightsOfATokenRowInTopKOrder) {
  const Domains domains(4, 2);
  LayoutParams params = layout_of(OutputLayout::kTokenMajor, 4, 2).params();
  params.num_experts = 8;
  params.top_k = 3;
  Places places{.num_tokens = 1, .expert_ids = {6, 4, 7}, .rows = {20, 10, 20}, .weights = {0.5F, 0.25F, 0.125F}};
  for (const bool token_major : {true, false}) {
    params.layout = token_major ? OutputLayout::kTokenMajor : OutputLayout::kExpertMajor;
    if (!token_major) places.rows = {20, 10, 21};
    RouteTables sender(DispatchLayout(params), domains, 0, places.view());
    EXPECT_EQ(sender.counts(), (std::vector<std::int32_t>{0, 1}));
    EXPECT_EQ(sender.link_rows().network, 1);
    EXPECT_EQ(sender.link_rows().own, 1);     // rank 2 keeps its own copy
    EXPECT_EQ(sender.link_rows().domain, 1);  // and passes one on to rank 3
    std::vector<std::byte> record(static_cast<std::size_t>(route_record_bytes(3)));
    sender.write_records(1, places.view(), record.data());
    RouteTables peer(DispatchLayout(params), domains, 2, {});
    peer.set_pairs(DomainPairs(domains, {0, 1, 0, 0, 0, 0, 0, 0}));
    peer.read_records(0, record.data());
    ASSERT_EQ(peer.terms().size(), 3U);
    const RouteTerm& first = peer.terms()[0];
    EXPECT_EQ(first.rank, 2);
    EXPECT_EQ(first.row, 10);
    EXPECT_EQ(first.flags, RouteTerm::kFirst | RouteTerm::kLast);
    const RouteTerm& second = peer.terms()[1];
    EXPECT_EQ(second.rank, 3);
    EXPECT_EQ(second.row, 20);
    EXPECT_EQ(second.weight, token_major ? 0.625F : 0.5F);
    EXPECT_EQ(second.flags, token_major ? RouteTerm::kFirst | RouteTerm::kLast : RouteTerm::kFirst);
    EXPECT_EQ(peer.terms()[2].rank, token_major ? -1 : 3);
    // By place, as gradients of the weights go back.
    EXPECT_EQ(peer.places()[0].row, 20);
    EXPECT_EQ(peer.places()[1].rank, 2);
    EXPECT_EQ(peer.places()[2].rank, 3);
  }
}

}  // namespace
}  // namespace epistle
