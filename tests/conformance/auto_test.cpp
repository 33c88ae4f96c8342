// `auto`: whichever dispatcher takes a call, the bits are the same, and handles stay with who made them.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "epistle/dispatcher.hpp"
#include "epistle/routing.hpp"

#include "support/round_trip.hpp"

namespace epistle::testing {
namespace {

constexpr int kNumRanks = 3;
constexpr std::int64_t kHidden = 16;
constexpr std::int64_t kMaxTokens = 700;

DispatcherConfig auto_config(const Sizing& sizing = Capacity{.rows_per_rank = kNumRanks * kMaxTokens}) {
  return {.hidden = kHidden,
          .num_experts = 7,
          .top_k = 2,
          .max_tokens = kMaxTokens,
          .input = DType::kFp32,
          .sizing = sizing,
          .num_buffers = 2};
}

/// The tokens of one rank in one call.
struct Batch {
  Batch(const Group& group, std::int64_t num_tokens, std::uint64_t seed)
      : routing(generate_routing(RoutingSpec::parse("zipf:1.0"), {.num_tokens = num_tokens,
                                                                  .num_experts = 7,
                                                                  .top_k = 2,
                                                                  .rank = group.rank(),
                                                                  .num_ranks = group.size(),
                                                                  .seed = seed})),
        rows(static_cast<std::size_t>(num_tokens * kHidden)),
        sums(rows.size()) {
    for (std::size_t idx = 0; idx < rows.size(); ++idx) {
      rows[idx] = static_cast<float>(group.rank() * 37 + static_cast<int>(idx % 1000));
    }
  }
  [[nodiscard]] std::int64_t num_tokens() const { return static_cast<std::int64_t>(rows.size()) / kHidden; }
  [[nodiscard]] Rows view(std::vector<float>& values) const {
    return {.data = values.data(), .num_rows = num_tokens(), .hidden = kHidden, .dtype = DType::kFp32};
  }
  [[nodiscard]] DispatchRequest request(std::int64_t most_tokens) {
    DispatchRequest request;
    request.expert_ids = IdsView(routing.expert_ids.data(), num_tokens(), 2);
    request.weights = WeightsView(routing.weights.data());
    request.most_tokens = most_tokens;
    request.tokens = view(rows);
    return request;
  }

  RoutingTable routing;
  std::vector<float> rows;
  std::vector<float> sums;
};

/// Experts that return what they are given.
void copy_outputs(const Received& received) {
  const auto from = received.rows();
  const auto to = received.expert_outputs();
  std::memcpy(to.data, from.data, static_cast<std::size_t>(received.num_rows() * kHidden) * sizeof(float));
}

std::vector<float> round_trip(Dispatcher& dispatcher, Batch& batch, std::int64_t most_tokens) {
  const Received received = dispatcher.dispatch(batch.request(most_tokens));
  copy_outputs(received);
  dispatcher.combine({.received = received, .out = batch.view(batch.sums)});
  return batch.sums;
}

bool is_for_few(const Dispatcher& dispatcher, std::int64_t num_tokens) {
  return dispatcher.describe_tuning(num_tokens).find("tokens: low_latency") != std::string::npos;
}

/// The largest call that goes to the dispatcher for few tokens.
std::int64_t most_few(const Dispatcher& dispatcher) {
  std::int64_t most = 0;
  while (most < kMaxTokens && is_for_few(dispatcher, most + 1)) ++most;
  return most;
}

TEST(Auto, BatchesOfAllSizesInTurnGiveTheSameBits) {
  run_thread_ranks(kNumRanks, [](Group& group) {
    Dispatcher dispatcher(group, "auto", auto_config());
    Dispatcher expected(group, "direct", auto_config());
    const std::int64_t few = most_few(dispatcher);
    ASSERT_GT(few, 0);
    ASSERT_LT(few, kMaxTokens);
    std::uint64_t seed = 1;
    for (const std::int64_t most : {few, few + 1, std::int64_t{1}, kMaxTokens, std::int64_t{5}, std::int64_t{0}}) {
      const std::int64_t largest = most == 0 ? kMaxTokens : most;
      Batch batch(group, group.rank() == 1 ? largest : largest / 2, ++seed);
      EXPECT_EQ(round_trip(dispatcher, batch, most), round_trip(expected, batch, 0)) << "up to " << most << " tokens";
    }
  });
}

TEST(Auto, HandlesStayWithTheDispatcherThatMadeThem) {
  run_thread_ranks(kNumRanks, [](Group& group) {
    Dispatcher dispatcher(group, "auto", auto_config());
    Batch few(group, 3, 1);
    Batch many(group, kMaxTokens, 2);
    const Received of_few = dispatcher.dispatch(few.request(3));
    const Received of_many = dispatcher.dispatch(many.request(0));
    copy_outputs(of_few);
    copy_outputs(of_many);
    dispatcher.combine({.received = of_many, .out = many.view(many.sums)});
    dispatcher.combine({.received = of_few, .out = few.view(few.sums)});
    Dispatcher expected(group, "direct", auto_config());
    Batch same_few(group, 3, 1);
    Batch same_many(group, kMaxTokens, 2);
    EXPECT_EQ(few.sums, round_trip(expected, same_few, 0));
    EXPECT_EQ(many.sums, round_trip(expected, same_many, 0));
    EXPECT_GT(dispatcher.wire_bytes(of_many.handle()).dispatch, dispatcher.wire_bytes(of_few.handle()).dispatch);
  });
}

TEST(Auto, RankWithMoreTokensThanItSaysIsRefusedOnAll) {
  run_thread_ranks(kNumRanks, [](Group& group) {
    Dispatcher dispatcher(group, "auto", auto_config());
    Batch batch(group, group.rank() == 2 ? 6 : 5, 1);
    const ErrorCode expected = group.rank() == 2 ? ErrorCode::kInvalidArgument : ErrorCode::kPeerRejected;
    const Outcome refused = outcome_of([&] { static_cast<void>(dispatcher.dispatch(batch.request(5))); });
    ASSERT_TRUE(refused);
    EXPECT_EQ(refused->code(), expected) << refused->what();
    EXPECT_NE(std::string_view(refused->what()).find("most_tokens"), std::string_view::npos) << refused->what();
    Batch good(group, 5, 1);
    EXPECT_FALSE(round_trip(dispatcher, good, 5).empty());
  });
}

TEST(Auto, RanksThatSayDifferentNumbersAreToldApart) {
  run_thread_ranks(kNumRanks, [](Group& group) {
    Dispatcher dispatcher(group, "auto", auto_config());
    Batch batch(group, 2, 1);
    const std::int64_t most = group.rank() == 0 ? kMaxTokens : 2;
    const Outcome refused = outcome_of([&] { static_cast<void>(dispatcher.dispatch(batch.request(most))); });
    ASSERT_TRUE(refused);
    EXPECT_EQ(refused->code(), ErrorCode::kShapeMismatch) << refused->what();
    EXPECT_FALSE(round_trip(dispatcher, batch, 2).empty());
  });
}

TEST(Auto, WithExactSizingEveryCallIsDirects) {
  run_thread_ranks(kNumRanks, [](Group& group) {
    Dispatcher dispatcher(group, "auto", auto_config(Exact{}));
    Dispatcher expected(group, "direct", auto_config(Exact{}));
    EXPECT_FALSE(is_for_few(dispatcher, 1));
    Batch batch(group, 4, 1);
    EXPECT_EQ(round_trip(dispatcher, batch, 4), round_trip(expected, batch, 0));
    EXPECT_EQ(dispatcher.shared_bytes(), expected.shared_bytes());
  });
}

TEST(Auto, WhereNoCallIsLargeTheDispatcherForFewIsTheOnlyOne) {
  DispatcherConfig config = auto_config(Capacity{.rows_per_rank = kNumRanks * 8});
  config.max_tokens = 8;
  const DispatcherInfo& info = find_dispatcher("auto");
  run_thread_ranks(kNumRanks, [&](Group& group) {
    Dispatcher dispatcher(group, "auto", config);
    Dispatcher expected(group, "low_latency", config);
    EXPECT_NE(dispatcher.describe_tuning(8).find("every call by low_latency"), std::string::npos)
        << dispatcher.describe_tuning(8);
    EXPECT_EQ(dispatcher.shared_bytes(), expected.shared_bytes());
    EXPECT_EQ(dispatcher.shared_bytes(), info.memory(config, kNumRanks).initial_bytes(MemoryKind::kShared));
    Batch batch(group, group.rank() + 6, 3);
    EXPECT_EQ(round_trip(dispatcher, batch, 0), round_trip(expected, batch, 0));
    EXPECT_EQ(round_trip(dispatcher, batch, 8), batch.sums);
  });
}

TEST(Auto, RefusedLateWeightsNameTheDispatcherOfTheCall) {
  run_thread_ranks(kNumRanks, [](Group& group) {
    Dispatcher dispatcher(group, "auto", auto_config());
    const std::vector<float> weights(static_cast<std::size_t>(kMaxTokens) * 2, 1.0F);
    for (const auto& [most, name] : {std::pair{std::int64_t{5}, "'low_latency'"}, {kMaxTokens, "'direct'"}}) {
      Batch batch(group, 5, 1);
      const Received received = dispatcher.dispatch(batch.request(most));
      const Outcome refused = outcome_of([&] {
        dispatcher.combine({.received = received, .weights = weights.data(), .out = batch.view(batch.sums)});
      });
      ASSERT_TRUE(refused);
      EXPECT_EQ(refused->code(), ErrorCode::kUnsupported) << refused->what();
      EXPECT_NE(std::string_view(refused->what()).find(name), std::string_view::npos) << refused->what();
    }
  });
}

TEST(Auto, MemoryIsThatOfBoth) {
  const DispatcherInfo& info = find_dispatcher("auto");
  const auto both = info.memory(auto_config(), kNumRanks).largest_bytes(MemoryKind::kShared);
  const auto one = find_dispatcher("direct").memory(auto_config(), kNumRanks).largest_bytes(MemoryKind::kShared);
  EXPECT_GT(both, one);
  run_thread_ranks(kNumRanks, [&](Group& group) {
    Dispatcher dispatcher(group, "auto", auto_config());
    EXPECT_EQ(dispatcher.shared_bytes(), info.memory(auto_config(), kNumRanks).initial_bytes(MemoryKind::kShared));
  });
}

}  // namespace
}  // namespace epistle::testing
