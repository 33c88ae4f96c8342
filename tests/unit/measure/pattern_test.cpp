#include "measure/pattern.hpp"

#include <cmath>
#include <set>
#include <vector>

#include <gtest/gtest.h>

#include "dispatch/reference/oracle.hpp"

namespace epistle {
namespace {

using Bytes = std::vector<std::byte>;

Bytes bytes_of(const RowKey& key, std::int64_t num_bytes) {
  Bytes bytes(static_cast<std::size_t>(num_bytes));
  fill_bytes(key, bytes.data(), num_bytes);
  return bytes;
}

TEST(Pattern, SameKeyGivesTheSameBytes) {
  const RowKey key{.seed = 3, .stream = RowStream::kScales, .rank = 2, .row = 11};
  EXPECT_EQ(bytes_of(key, 100), bytes_of(key, 100));
}

TEST(Pattern, EveryPartOfTheKeyCounts) {
  std::set<Bytes> rows;
  int num_keys = 0;
  for (const std::uint64_t seed : {1U, 2U}) {
    for (const RowStream stream : {RowStream::kPayload, RowStream::kScales, RowStream::kExpertOutput}) {
      for (const int rank : {0, 1, 7}) {
        for (const std::int64_t row : {0, 1, 4096}) {
          rows.insert(bytes_of({.seed = seed, .stream = stream, .rank = rank, .row = row}, 16));
          ++num_keys;
        }
      }
    }
  }
  EXPECT_EQ(rows.size(), static_cast<std::size_t>(num_keys));
}

TEST(Pattern, ShortRowsAreTheStartOfLongOnes) {
  const RowKey key{.seed = 1, .stream = RowStream::kPayload, .rank = 0, .row = 5};
  const Bytes whole = bytes_of(key, 64);
  for (const std::int64_t num_bytes : {0, 1, 7, 8, 9, 63}) {
    EXPECT_EQ(bytes_of(key, num_bytes), Bytes(whole.begin(), whole.begin() + num_bytes)) << num_bytes;
  }
}

TEST(Pattern, FillsNoByteBeyondTheRow) {
  for (const std::int64_t num_bytes : {1, 7, 8, 13}) {
    Bytes bytes(32, std::byte{0x77});
    fill_bytes({}, bytes.data(), num_bytes);
    for (std::size_t idx = static_cast<std::size_t>(num_bytes); idx < bytes.size(); ++idx) {
      EXPECT_EQ(bytes[idx], std::byte{0x77}) << num_bytes << " bytes, index " << idx;
    }
  }
}

class PatternValues : public ::testing::TestWithParam<DType> {};

TEST_P(PatternValues, AreFiniteOfEitherSignAndOfLikeMagnitude) {
  constexpr std::int64_t kNumValues = 4096;
  const DType dtype = GetParam();
  Bytes row(static_cast<std::size_t>(kNumValues * dtype_bytes(dtype)));
  fill_values({.stream = RowStream::kExpertOutput}, dtype, row.data(), static_cast<std::int64_t>(row.size()));
  std::set<float> values;
  int num_negative = 0;
  for (std::int64_t idx = 0; idx < kNumValues; ++idx) {
    const float value = reference::read_element(dtype, row.data(), idx);
    ASSERT_GE(std::fabs(value), 0.125F) << idx;
    ASSERT_LT(std::fabs(value), 2.0F) << idx;
    values.insert(value);
    if (value < 0.0F) ++num_negative;
  }
  EXPECT_GT(num_negative, kNumValues / 3);
  EXPECT_LT(num_negative, kNumValues * 2 / 3);
  // bf16 has 2 signs x 4 exponents x 128 mantissas in this range.
  EXPECT_GT(values.size(), 900U);
}

/// The data is there to show a wrong order of additions: sums of it must round.
TEST_P(PatternValues, SumsDependOnTheOrder) {
  constexpr std::int64_t kNumValues = 64;
  Bytes row(static_cast<std::size_t>(kNumValues * dtype_bytes(GetParam())));
  fill_values({}, GetParam(), row.data(), static_cast<std::int64_t>(row.size()));
  const auto weighted = [&](std::int64_t idx) {
    return reference::read_element(GetParam(), row.data(), idx) * (1.0F / static_cast<float>(3 + idx % 8));
  };
  float forward = 0.0F;
  float backward = 0.0F;
  for (std::int64_t idx = 0; idx < kNumValues; ++idx) forward += weighted(idx);
  for (std::int64_t idx = kNumValues; idx-- > 0;) backward += weighted(idx);
  EXPECT_NE(forward, backward);
}

INSTANTIATE_TEST_SUITE_P(SummedTypes, PatternValues, ::testing::Values(DType::kBf16, DType::kFp16, DType::kFp32),
                         [](const auto& test) { return std::string(to_string(test.param)); });

}  // namespace
}  // namespace epistle
