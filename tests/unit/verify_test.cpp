// Every kind of wrong output must be found: an Expectation that finds nothing makes every test above it worthless.
#include "measure/verify.hpp"

#include <functional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "dispatch/call/config_check.hpp"
#include "measure/bench_check.hpp"

namespace epistle {
namespace {

constexpr int kNumRanks = 2;
constexpr std::int64_t kNumTokens = 6;
constexpr std::uint64_t kSeed = 5;

DispatcherConfig make_config(OutputLayout layout) {
  DispatcherConfig config;
  config.hidden = 128;
  config.dtype = DType::kFp8E4m3;
  config.num_experts = 6;
  config.top_k = 3;
  config.max_tokens = kNumTokens;
  config.layout = layout;
  config.alignment = layout == OutputLayout::kExpertMajor ? 4 : 1;
  config.sizing = layout == OutputLayout::kExpertSlots ? Sizing::kExact : Sizing::kCapacity;
  // In the expert layouts some assignments have no place; every layout has padding.
  config.capacity_rows = layout == OutputLayout::kTokenMajor ? 14 : layout == OutputLayout::kExpertMajor ? 14 : 5;
  config.overflow = OverflowPolicy::kDrop;
  return config;
}

std::vector<RoutingTable> make_tables() {
  std::vector<RoutingTable> tables;
  for (int rank = 0; rank < kNumRanks; ++rank) {
    tables.push_back(generate_routing(
        {.kind = RoutingKind::kUniform},
        {.num_tokens = kNumTokens, .num_experts = 6, .top_k = 3, .rank = rank, .num_ranks = kNumRanks, .seed = kSeed}));
  }
  return tables;
}

/// What one rank got, in memory that a test may change.
struct Received {
  DispatchOutput output;
  std::vector<std::byte> rows;
  std::vector<std::byte> scales;
  std::vector<std::byte> sums;
  std::vector<std::int32_t> src_rank;
  std::vector<std::int32_t> src_token;
  std::vector<std::int32_t> local_expert_ids;
  std::vector<float> weights;
  std::vector<std::int64_t> expert_counts;
  std::vector<std::int64_t> expert_begin;
  std::vector<std::int64_t> expert_dropped;

  Received(const DispatchOutput& source, const std::vector<std::byte>& combined, const DispatcherConfig& config)
      : output(source), sums(combined) {
    const auto num_rows = static_cast<std::size_t>(source.num_rows);
    const bool token_major = config.layout == OutputLayout::kTokenMajor;
    const std::size_t per_row = token_major ? static_cast<std::size_t>(config.top_k) : 1;
    const auto num_local = static_cast<std::size_t>(source.num_local_experts);
    rows.assign(source.rows, source.rows + source.num_rows * source.row_bytes);
    scales.assign(source.scales, source.scales + source.num_rows * source.scale_bytes);
    src_rank.assign(source.src_rank, source.src_rank + num_rows);
    src_token.assign(source.src_token, source.src_token + num_rows);
    if (token_major) local_expert_ids.assign(source.local_expert_ids, source.local_expert_ids + num_rows * per_row);
    weights.assign(source.weights, source.weights + num_rows * per_row);
    expert_counts.assign(source.expert_counts, source.expert_counts + num_local);
    if (!token_major) expert_begin.assign(source.expert_begin, source.expert_begin + num_local + 1);
    expert_dropped.assign(source.expert_dropped, source.expert_dropped + num_local);
    point();
  }
  Received(const Received& other) { *this = other; }
  Received& operator=(const Received& other) {
    if (this == &other) return *this;
    output = other.output;
    rows = other.rows;
    scales = other.scales;
    sums = other.sums;
    src_rank = other.src_rank;
    src_token = other.src_token;
    local_expert_ids = other.local_expert_ids;
    weights = other.weights;
    expert_counts = other.expert_counts;
    expert_begin = other.expert_begin;
    expert_dropped = other.expert_dropped;
    point();
    return *this;
  }

 private:
  void point() {
    output.rows = rows.data();
    output.scales = scales.data();
    output.src_rank = src_rank.data();
    output.src_token = src_token.data();
    output.local_expert_ids = local_expert_ids.data();
    output.weights = weights.data();
    output.expert_counts = expert_counts.data();
    output.expert_begin = expert_begin.data();
    output.expert_dropped = expert_dropped.data();
  }
};

/// Both ranks of one round trip, with the inputs of the benchmark.
class VerifyTest : public ::testing::TestWithParam<OutputLayout> {
 protected:
  VerifyTest()
      : config_(resolve_config(make_config(GetParam()), kNumRanks)),
        tables_(make_tables()),
        expectation_(config_, tables_) {
    std::vector<std::vector<Received>> by_rank(kNumRanks);
    run_thread_ranks(kNumRanks, [&](Group& group) {
      BenchInputs inputs = make_inputs(group.rank());
      const auto dispatcher = make_dispatcher("direct", group, config_);
      const auto rank = static_cast<std::size_t>(group.rank());
      const Handle handle = dispatcher->prepare(tables_[rank].view());
      const DispatchOutput& output = dispatcher->dispatch(handle, inputs.payload());
      inputs.fill_expert_outputs(output.combine_rows, output.num_rows);
      dispatcher->combine(handle, output.combine_rows, inputs.out().data(),
                          static_cast<std::int64_t>(inputs.out().size()));
      by_rank[rank].emplace_back(output, inputs.out(), config_);
    });
    for (const std::vector<Received>& received : by_rank) received_.push_back(received.front());
  }

  [[nodiscard]] BenchInputs make_inputs(int rank) const {
    const LayoutParams params = to_layout_params(config_, kNumRanks, Transport::kDirect);
    return BenchInputs({.rank = rank,
                        .seed = kSeed,
                        .num_tokens = kNumTokens,
                        .row_bytes = params.row_bytes,
                        .scale_bytes = params.scale_bytes,
                        .combine_row_bytes = params.combine_row_bytes,
                        .combine_dtype = config_.combine_dtype});
  }

  /// What the check of every rank says when rank 1 got `received`.
  [[nodiscard]] std::vector<Mismatch> check(const Received& received) const {
    std::vector<Mismatch> found(kNumRanks);
    run_thread_ranks(kNumRanks, [&](Group& group) {
      const auto rank = static_cast<std::size_t>(group.rank());
      BenchInputs inputs = make_inputs(group.rank());
      const Received& own = rank == 1 ? received : received_[0];
      inputs.out() = own.sums;
      found[rank] = BenchCheck(group, expectation_, inputs).run(own.output, {});
    });
    return found;
  }

  /// Rank 1 finds a difference that says `part`, rank 0 finds none, and nobody waits for anybody.
  void expect_found(const std::string& part, const std::function<void(Received&)>& corrupt) const {
    Received received = received_[1];
    corrupt(received);
    const std::vector<Mismatch> found = check(received);
    EXPECT_FALSE(found[0].has_value()) << *found[0];
    ASSERT_TRUE(found[1].has_value()) << part;
    EXPECT_NE(found[1]->find(part), std::string::npos) << "no '" << part << "' in: " << *found[1];
  }

  [[nodiscard]] std::size_t first_row(bool padding) const {
    const Received& received = received_[1];
    for (std::size_t row = 0; row < received.src_rank.size(); ++row) {
      if ((received.src_rank[row] < 0) == padding) return row;
    }
    ADD_FAILURE() << "no such row";
    return 0;
  }

  DispatcherConfig config_;
  std::vector<RoutingTable> tables_;
  Expectation expectation_;
  std::vector<Received> received_;
};

void flip(std::byte& byte) { byte ^= std::byte{0x01}; }

TEST_P(VerifyTest, FindsNothingWhereAllIsRight) {
  for (const Mismatch& mismatch : check(received_[1])) EXPECT_FALSE(mismatch.has_value()) << *mismatch;
}

TEST_P(VerifyTest, FindsAFlippedBitInEveryRow) {
  const std::size_t row_bytes = static_cast<std::size_t>(received_[1].output.row_bytes);
  for (std::size_t row = 0; row < received_[1].src_rank.size(); ++row) {
    expect_found("dispatch row " + std::to_string(row) + ": byte 77 of",
                 [&](Received& received) { flip(received.rows[row * row_bytes + 77]); });
  }
}

TEST_P(VerifyTest, PaddingThatIsLeftAsItWasIsNotCompared) {
  DispatcherConfig config = config_;
  config.zero_padding = false;
  const Expectation expectation(config, tables_);
  const auto row_bytes = static_cast<std::size_t>(received_[1].output.row_bytes);
  Received received = received_[1];
  flip(received.rows[first_row(true) * row_bytes]);
  run_thread_ranks(kNumRanks, [&](Group& group) {
    const Received& own = group.rank() == 1 ? received : received_[0];
    BenchInputs inputs = make_inputs(group.rank());
    inputs.out() = own.sums;
    BenchCheck check(group, expectation, inputs);
    const Mismatch mismatch = check.run(own.output, {});
    EXPECT_FALSE(mismatch.has_value()) << *mismatch;
    EXPECT_LT(check.num_bytes(own.output), BenchCheck(group, expectation_, inputs).num_bytes(own.output));
  });
  flip(received.rows[first_row(false) * row_bytes]);
  run_thread_ranks(kNumRanks, [&](Group& group) {
    const Received& own = group.rank() == 1 ? received : received_[0];
    BenchInputs inputs = make_inputs(group.rank());
    inputs.out() = own.sums;
    EXPECT_EQ(BenchCheck(group, expectation, inputs).run(own.output, {}).has_value(), group.rank() == 1);
  });
}

TEST_P(VerifyTest, FindsAFlippedBitInTheScales) {
  const std::size_t row = first_row(false);
  expect_found("scales row " + std::to_string(row) + ":", [&](Received& received) {
    flip(received.scales[row * static_cast<std::size_t>(received.output.scale_bytes)]);
  });
}

TEST_P(VerifyTest, FindsExchangedRows) {
  const std::size_t row = first_row(false);
  const auto row_bytes = static_cast<std::ptrdiff_t>(received_[1].output.row_bytes);
  ASSERT_GE(received_[1].src_rank[row + 1], 0);
  expect_found("dispatch row", [&](Received& received) {
    const auto begin = received.rows.begin() + static_cast<std::ptrdiff_t>(row) * row_bytes;
    std::swap_ranges(begin, begin + row_bytes, begin + row_bytes);
  });
}

TEST_P(VerifyTest, FindsAFlippedBitInEverySum) {
  const auto row_bytes = static_cast<std::size_t>(config_.combine_hidden * dtype_bytes(config_.combine_dtype));
  for (std::size_t token = 0; token < kNumTokens; ++token) {
    expect_found("combine of token " + std::to_string(token) + ": byte " + std::to_string(row_bytes - 1),
                 [&](Received& received) { flip(received.sums[(token + 1) * row_bytes - 1]); });
  }
}

TEST_P(VerifyTest, FindsWrongOrigins) {
  const std::size_t row = first_row(false);
  expect_found("src_rank[" + std::to_string(row) + "]", [&](Received& received) { received.src_rank[row] ^= 1; });
  expect_found("src_token[" + std::to_string(row) + "]", [&](Received& received) { ++received.src_token[row]; });
  const std::size_t padding = first_row(true);
  expect_found("src_rank[" + std::to_string(padding) + "]",
               [&](Received& received) { received.src_rank[padding] = 0; });
}

TEST_P(VerifyTest, FindsWrongWeights) {
  const std::size_t per_row = received_[1].weights.size() / received_[1].src_rank.size();
  expect_found("weights[", [&](Received& received) { received.weights[first_row(false) * per_row] += 0.125F; });
  // Equal as numbers, not as bits.
  expect_found("weights[", [&](Received& received) { received.weights[first_row(true) * per_row] = -0.0F; });
}

TEST_P(VerifyTest, FindsWrongCounts) {
  expect_found("num_rows", [](Received& received) { --received.output.num_rows; });
  expect_found("num_local_experts", [](Received& received) { --received.output.num_local_experts; });
  expect_found("first_expert", [](Received& received) { received.output.first_expert = 0; });
  expect_found("expert_counts[2]", [](Received& received) { ++received.expert_counts[2]; });
  expect_found("expert_dropped[0]", [](Received& received) { ++received.expert_dropped[0]; });
}

TEST_P(VerifyTest, FindsWhatOnlyThisLayoutHas) {
  if (GetParam() == OutputLayout::kTokenMajor) {
    expect_found("local_expert_ids[1]", [](Received& received) { received.local_expert_ids[1] ^= 1; });
  } else {
    expect_found("expert_begin[3]", [](Received& received) { ++received.expert_begin[3]; });
  }
}

TEST_P(VerifyTest, PoisonIsFound) {
  std::vector<Mismatch> found(kNumRanks);
  run_thread_ranks(kNumRanks, [&](Group& group) {
    const auto rank = static_cast<std::size_t>(group.rank());
    BenchInputs inputs = make_inputs(group.rank());
    Received own = received_[rank];
    inputs.out() = own.sums;
    BenchCheck check(group, expectation_, inputs);
    check.poison(own.output);
    found[rank] = check.run(own.output, {});
  });
  for (const Mismatch& mismatch : found) EXPECT_TRUE(mismatch.has_value());
}

INSTANTIATE_TEST_SUITE_P(Layouts, VerifyTest,
                         ::testing::Values(OutputLayout::kTokenMajor, OutputLayout::kExpertMajor,
                                           OutputLayout::kExpertSlots),
                         [](const auto& test) { return std::string(to_string(test.param)); });

TEST(CompareBytes, NamesTheFirstDifferentByte) {
  const std::string actual = "abcd";
  EXPECT_FALSE(compare_bytes(actual.data(), "abcd", 4, "text").has_value());
  EXPECT_FALSE(compare_bytes(nullptr, nullptr, 0, "nothing").has_value());
  const Mismatch mismatch = compare_bytes(actual.data(), "abzz", 4, "text");
  ASSERT_TRUE(mismatch.has_value());
  EXPECT_EQ(*mismatch, "text: byte 2 of 4 is 63, expected 7a");
}

}  // namespace
}  // namespace epistle
