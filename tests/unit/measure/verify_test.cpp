// Every kind of wrong output must be found: an Expectation that finds nothing makes every test above it worthless.
#include "measure/verify.hpp"

#include <functional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "epistle/dispatcher.hpp"

#include "dispatch/call/resolved_config.hpp"
#include "measure/bench_check.hpp"
#include "support/scenario.hpp"

namespace epistle {
namespace {

constexpr int kVerifyRanks = 2;
constexpr std::int64_t kNumTokens = 6;
constexpr std::uint64_t kSeed = 5;

DispatcherConfig make_config(OutputLayout layout) {
  DispatcherConfig config;
  config.hidden = 128;
  config.input = DType::kFp8E4m3;
  config.num_experts = 6;
  config.top_k = 3;
  config.max_tokens = kNumTokens;
  // In the expert layouts some assignments have no place; every layout has padding.
  const bool has_blocks = layout == OutputLayout::kExpertBlocks;
  testing::set_layout(config, layout, has_blocks ? SizingMode::kExact : SizingMode::kCapacity, has_blocks ? 5 : 14,
                      /*alignment=*/4);
  config.overflow = OverflowPolicy::kDrop;
  return config;
}

std::vector<RoutingTable> make_tables() {
  std::vector<RoutingTable> tables;
  for (int rank = 0; rank < kVerifyRanks; ++rank) {
    tables.push_back(generate_routing({.kind = RoutingKind::kUniform}, {.num_tokens = kNumTokens,
                                                                        .num_experts = 6,
                                                                        .top_k = 3,
                                                                        .rank = rank,
                                                                        .num_ranks = kVerifyRanks,
                                                                        .seed = kSeed}));
  }
  return tables;
}

/// What one rank got, in memory that a test may change.
struct Output {
  ReceivedData data;
  std::vector<std::byte> rows;
  std::vector<std::byte> scales;
  std::vector<std::byte> sums;
  std::vector<std::int32_t> src_rank;
  std::vector<std::int32_t> src_token;
  std::vector<std::int32_t> local_experts;
  std::vector<std::int32_t> row_expert;
  std::vector<float> weights;
  std::vector<std::int32_t> expert_counts;
  std::vector<std::int32_t> expert_begin;
  std::vector<std::int32_t> expert_dropped;

  Output(const ReceivedData& source, const std::vector<std::byte>& combined, const ResolvedConfig& config)
      : data(source), sums(combined) {
    const RowDescription& description = source.description;
    const auto num_rows = static_cast<std::size_t>(source.num_rows());
    const bool token_major = config.layout == OutputLayout::kTokenMajor;
    const std::size_t per_row = token_major ? static_cast<std::size_t>(config.top_k) : 1;
    const auto num_local = static_cast<std::size_t>(description.num_local_experts);
    rows.assign(source.row_data(), source.row_data() + source.num_rows() * source.rows.row_bytes());
    scales.assign(source.scale_data(), source.scale_data() + source.scale_bytes());
    src_rank.assign(description.src_rank, description.src_rank + num_rows);
    src_token.assign(description.src_token, description.src_token + num_rows);
    if (token_major) {
      local_experts.assign(description.local_experts, description.local_experts + num_rows * per_row);
    } else {
      row_expert.assign(description.row_expert, description.row_expert + num_rows);
      expert_begin.assign(description.expert_begin, description.expert_begin + num_local + 1);
    }
    weights.assign(description.weights, description.weights + num_rows * per_row);
    expert_counts.assign(description.expert_counts, description.expert_counts + num_local);
    expert_dropped.assign(description.expert_dropped, description.expert_dropped + num_local);
    point();
  }
  Output(const Output& other) { *this = other; }
  Output& operator=(const Output& other) {
    if (this == &other) return *this;
    data = other.data;
    rows = other.rows;
    scales = other.scales;
    sums = other.sums;
    src_rank = other.src_rank;
    src_token = other.src_token;
    local_experts = other.local_experts;
    row_expert = other.row_expert;
    weights = other.weights;
    expert_counts = other.expert_counts;
    expert_begin = other.expert_begin;
    expert_dropped = other.expert_dropped;
    point();
    return *this;
  }

 private:
  template <typename Value>
  static const Value* or_null(const std::vector<Value>& values) {
    return values.empty() ? nullptr : values.data();
  }
  void point() {
    RowDescription& description = data.description;
    data.rows.data = rows.data();
    data.scales.data = scales.data();
    description.src_rank = src_rank.data();
    description.src_token = src_token.data();
    description.local_experts = or_null(local_experts);
    description.row_expert = or_null(row_expert);
    description.weights = weights.data();
    description.expert_counts = expert_counts.data();
    description.expert_begin = or_null(expert_begin);
    description.expert_dropped = expert_dropped.data();
  }
};

/// Both ranks of one round trip, with the inputs of the benchmark.
class VerifyTest : public ::testing::TestWithParam<OutputLayout> {
 protected:
  VerifyTest()
      : config_(resolve_config(make_config(GetParam()), kVerifyRanks)),
        tables_(make_tables()),
        expectation_(config_, tables_) {
    std::vector<std::vector<Output>> by_rank(kVerifyRanks);
    run_thread_ranks(kVerifyRanks, [&](Group& group) {
      BenchInputs inputs = make_inputs(group.rank());
      Dispatcher dispatcher(group, "direct", make_config(GetParam()));
      const auto rank = static_cast<std::size_t>(group.rank());
      const Received received = dispatcher.dispatch({.expert_ids = tables_[rank].ids(),
                                                     .weights = tables_[rank].probs(),
                                                     .tokens = inputs.tokens(),
                                                     .scales = inputs.scales()});
      inputs.fill_expert_outputs(static_cast<std::byte*>(received.expert_outputs().data), received.num_rows());
      dispatcher.combine({.received = received, .out = inputs.out_rows()});
      by_rank[rank].emplace_back(data_of(received), inputs.out(), config_);
    });
    for (const std::vector<Output>& output : by_rank) output_.push_back(output.front());
  }

  [[nodiscard]] BenchInputs make_inputs(int rank) const {
    return BenchInputs({.rank = rank, .seed = kSeed, .num_tokens = kNumTokens, .config = config_});
  }

  /// What the check of every rank says when rank 1 got `output`.
  [[nodiscard]] std::vector<Mismatch> check(const Output& output) const {
    std::vector<Mismatch> found(kVerifyRanks);
    run_thread_ranks(kVerifyRanks, [&](Group& group) {
      const auto rank = static_cast<std::size_t>(group.rank());
      BenchInputs inputs = make_inputs(group.rank());
      const Output& own = rank == 1 ? output : output_[0];
      inputs.out() = own.sums;
      found[rank] = BenchCheck(group, expectation_, inputs).run(own.data, {});
    });
    return found;
  }

  /// Rank 1 finds a difference that says `part`, rank 0 finds none, and nobody waits for anybody.
  void expect_found(const std::string& part, const std::function<void(Output&)>& corrupt) const {
    Output output = output_[1];
    corrupt(output);
    const std::vector<Mismatch> found = check(output);
    EXPECT_FALSE(found[0].has_value()) << *found[0];
    ASSERT_TRUE(found[1].has_value()) << part;
    EXPECT_NE(found[1]->find(part), std::string::npos) << "no '" << part << "' in: " << *found[1];
  }

  [[nodiscard]] std::size_t first_row(bool padding) const {
    const Output& output = output_[1];
    for (std::size_t row = 0; row < output.src_rank.size(); ++row) {
      if ((output.src_rank[row] < 0) == padding) return row;
    }
    ADD_FAILURE() << "no such row";
    return 0;
  }

  ResolvedConfig config_;
  std::vector<RoutingTable> tables_;
  Expectation expectation_;
  std::vector<Output> output_;
};

void flip(std::byte& byte) { byte ^= std::byte{0x01}; }

TEST_P(VerifyTest, FindsNothingWhereAllIsRight) {
  for (const Mismatch& mismatch : check(output_[1])) EXPECT_FALSE(mismatch.has_value()) << *mismatch;
}

TEST_P(VerifyTest, FindsAFlippedBitInEveryRow) {
  const std::size_t row_bytes = static_cast<std::size_t>(output_[1].data.rows.row_bytes());
  for (std::size_t row = 0; row < output_[1].src_rank.size(); ++row) {
    expect_found("dispatch row " + std::to_string(row) + ": byte 77 of",
                 [&](Output& output) { flip(output.rows[row * row_bytes + 77]); });
  }
}

TEST_P(VerifyTest, PaddingThatIsLeftAsItWasIsNotCompared) {
  ResolvedConfig config = config_;
  config.zero_padding = false;
  const Expectation expectation(config, tables_);
  const auto row_bytes = static_cast<std::size_t>(output_[1].data.rows.row_bytes());
  Output output = output_[1];
  flip(output.rows[first_row(true) * row_bytes]);
  run_thread_ranks(kVerifyRanks, [&](Group& group) {
    const Output& own = group.rank() == 1 ? output : output_[0];
    BenchInputs inputs = make_inputs(group.rank());
    inputs.out() = own.sums;
    BenchCheck check(group, expectation, inputs);
    const Mismatch mismatch = check.run(own.data, {});
    EXPECT_FALSE(mismatch.has_value()) << *mismatch;
    EXPECT_LT(check.num_bytes(own.data), BenchCheck(group, expectation_, inputs).num_bytes(own.data));
  });
  flip(output.rows[first_row(false) * row_bytes]);
  run_thread_ranks(kVerifyRanks, [&](Group& group) {
    const Output& own = group.rank() == 1 ? output : output_[0];
    BenchInputs inputs = make_inputs(group.rank());
    inputs.out() = own.sums;
    EXPECT_EQ(BenchCheck(group, expectation, inputs).run(own.data, {}).has_value(), group.rank() == 1);
  });
}

TEST_P(VerifyTest, FindsAFlippedBitInTheScales) {
  const std::size_t row = first_row(false);
  expect_found("scales row " + std::to_string(row) + ":", [&](Output& output) {
    flip(output.scales[row * static_cast<std::size_t>(output.data.scale_row_bytes())]);
  });
}

TEST_P(VerifyTest, FindsExchangedRows) {
  const std::size_t row = first_row(false);
  const auto row_bytes = static_cast<std::ptrdiff_t>(output_[1].data.rows.row_bytes());
  ASSERT_GE(output_[1].src_rank[row + 1], 0);
  expect_found("dispatch row", [&](Output& output) {
    const auto begin = output.rows.begin() + static_cast<std::ptrdiff_t>(row) * row_bytes;
    std::swap_ranges(begin, begin + row_bytes, begin + row_bytes);
  });
}

TEST_P(VerifyTest, FindsAFlippedBitInEverySum) {
  const auto row_bytes = static_cast<std::size_t>(config_.combine_hidden * dtype_bytes(config_.combine_dtype));
  for (std::size_t token = 0; token < kNumTokens; ++token) {
    expect_found("combine of token " + std::to_string(token) + ": byte " + std::to_string(row_bytes - 1),
                 [&](Output& output) { flip(output.sums[(token + 1) * row_bytes - 1]); });
  }
}

TEST_P(VerifyTest, FindsWrongOrigins) {
  const std::size_t row = first_row(false);
  expect_found("src_rank[" + std::to_string(row) + "]", [&](Output& output) { output.src_rank[row] ^= 1; });
  expect_found("src_token[" + std::to_string(row) + "]", [&](Output& output) { ++output.src_token[row]; });
  const std::size_t padding = first_row(true);
  expect_found("src_rank[" + std::to_string(padding) + "]", [&](Output& output) { output.src_rank[padding] = 0; });
}

TEST_P(VerifyTest, FindsWrongWeights) {
  const std::size_t per_row = output_[1].weights.size() / output_[1].src_rank.size();
  expect_found("weights[", [&](Output& output) { output.weights[first_row(false) * per_row] += 0.125F; });
  // Equal as numbers, not as bits.
  expect_found("weights[", [&](Output& output) { output.weights[first_row(true) * per_row] = -0.0F; });
}

TEST_P(VerifyTest, FindsWrongCounts) {
  expect_found("num_rows", [](Output& output) { --output.data.description.num_rows; });
  expect_found("num_local_experts", [](Output& output) { --output.data.description.num_local_experts; });
  expect_found("first_expert", [](Output& output) { output.data.description.first_expert = 0; });
  expect_found("expert_counts[2]", [](Output& output) { ++output.expert_counts[2]; });
  expect_found("expert_dropped[0]", [](Output& output) { ++output.expert_dropped[0]; });
}

TEST_P(VerifyTest, FindsWhatOnlyThisLayoutHas) {
  if (GetParam() == OutputLayout::kTokenMajor) {
    expect_found("local_experts[1]", [](Output& output) { output.local_experts[1] ^= 1; });
  } else {
    expect_found("expert_begin[3]", [](Output& output) { ++output.expert_begin[3]; });
    const std::size_t row = first_row(false);
    expect_found("row_expert[" + std::to_string(row) + "]", [&](Output& output) { ++output.row_expert[row]; });
    const std::size_t padding = first_row(true);
    expect_found("row_expert[" + std::to_string(padding) + "]",
                 [&](Output& output) { output.row_expert[padding] = 0; });
    expect_found("row_expert is null", [](Output& output) { output.data.description.row_expert = nullptr; });
    expect_found("expert_begin is null", [](Output& output) { output.data.description.expert_begin = nullptr; });
  }
}

TEST_P(VerifyTest, PoisonIsFound) {
  std::vector<Mismatch> found(kVerifyRanks);
  run_thread_ranks(kVerifyRanks, [&](Group& group) {
    const auto rank = static_cast<std::size_t>(group.rank());
    BenchInputs inputs = make_inputs(group.rank());
    Output own = output_[rank];
    inputs.out() = own.sums;
    BenchCheck check(group, expectation_, inputs);
    check.poison(own.data);
    found[rank] = check.run(own.data, {});
  });
  for (const Mismatch& mismatch : found) EXPECT_TRUE(mismatch.has_value());
}

INSTANTIATE_TEST_SUITE_P(Layouts, VerifyTest,
                         ::testing::Values(OutputLayout::kTokenMajor, OutputLayout::kExpertMajor,
                                           OutputLayout::kExpertBlocks),
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
