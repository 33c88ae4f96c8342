#include "measure/package_oracle.hpp"

#include <algorithm>
#include <vector>

#include <gtest/gtest.h>

namespace epistle::test {
namespace {

constexpr std::int64_t kWidth = 8;

/// Two ranks with two experts each. Token 0 of rank 0 goes to both experts of rank 1, token 1 to both ranks, and token
/// 0 of rank 1 nowhere but to expert 0.
std::vector<RoutingTable> two_tables() {
  return {{2, 4, 2, {2, 3, 0, 2}, {0.25F, 0.5F, 0.5F, 0.5F}}, {1, 4, 2, {0, -1}, {1.0F, 0.0F}}};
}

std::vector<std::uint16_t> joined(const std::vector<std::vector<std::uint16_t>>& parts) {
  std::vector<std::uint16_t> all;
  for (const auto& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

std::vector<std::uint16_t> row_of(int rank, std::int64_t token) {
  const auto rows = package_rows(1, rank, token + 1, kWidth);
  return {rows.end() - kWidth, rows.end()};
}

TEST(PackageOracle, TakesTheRowsOfARankInAnyOrder) {
  const auto tables = two_tables();
  const PackageRun run = {.tables = tables, .seed = 1, .hidden = kWidth, .semantics = {}};
  EXPECT_EQ(check_package_rows(run, 0, joined({row_of(1, 0), row_of(0, 1)})), "");
  EXPECT_EQ(check_package_rows(run, 1, joined({row_of(0, 0), row_of(0, 1)})), "");
  const PackageRun per_expert = {
      .tables = tables, .seed = 1, .hidden = kWidth, .semantics = {.per_expert = true, .weighted = true}};
  EXPECT_EQ(check_package_rows(per_expert, 1, joined({row_of(0, 0), row_of(0, 1), row_of(0, 0)})), "");
}

TEST(PackageOracle, RefusesRowsThatAreMissingTwiceThereOrChanged) {
  const auto tables = two_tables();
  const PackageRun run = {.tables = tables, .seed = 1, .hidden = kWidth, .semantics = {}};
  EXPECT_EQ(check_package_rows(run, 1, row_of(0, 0)), "rank 1 received 1 rows of 8 elements, 2 belong to it");
  EXPECT_NE(check_package_rows(run, 1, joined({row_of(0, 0), row_of(0, 0)})).find("row 1 that rank 1"),
            std::string::npos);
  auto changed = joined({row_of(0, 0), row_of(0, 1)});
  changed.back() ^= 1U;
  EXPECT_NE(check_package_rows(run, 1, changed), "");
}

TEST(PackageOracle, SumsAreOfRanksOrOfWeights) {
  const auto tables = two_tables();
  PackageRun run = {.tables = tables, .seed = 1, .hidden = kWidth, .semantics = {}};
  // Token 0 is on one rank, and token 1 on two: twice a small whole number is its bits with the next exponent.
  auto sums = package_rows(1, 0, 2, kWidth);
  for (std::int64_t at = kWidth; at < 2 * kWidth; ++at) {
    std::uint16_t& bits = sums[static_cast<std::size_t>(at)];
    if ((bits & 0x7fffU) != 0) bits = static_cast<std::uint16_t>(bits + (1U << 7U));
  }
  EXPECT_EQ(check_package_sums(run, 0, sums), "");
  run.semantics.weighted = true;
  EXPECT_NE(check_package_sums(run, 0, sums), "") << "0.75 of token 0 is not the whole of it";
  const auto whole = package_rows(1, 1, 1, kWidth);
  EXPECT_EQ(check_package_sums(run, 1, whole), "") << "its one weight is 1";
  auto undefined = whole;
  undefined.front() = 0x7fc0;
  EXPECT_NE(check_package_sums(run, 1, undefined), "") << "NaN";
  EXPECT_NE(check_package_sums(run, 1, {}), "");
}

TEST(PackageOracle, RowsOfRanksAndSeedsDiffer) {
  EXPECT_NE(package_rows(1, 0, 4, kWidth), package_rows(1, 1, 4, kWidth));
  EXPECT_NE(package_rows(1, 0, 4, kWidth), package_rows(2, 0, 4, kWidth));
  const auto rows = package_rows(1, 0, 64, kWidth);
  EXPECT_GT(std::count_if(rows.begin(), rows.end(), [](std::uint16_t bits) { return bits != 0; }), 256);
}

}  // namespace
}  // namespace epistle::test
