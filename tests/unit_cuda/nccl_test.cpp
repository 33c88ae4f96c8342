// The parts of the CUDA dispatcher alltoall that need no GPU.
#include <gtest/gtest.h>

#if EPISTLE_HAS_NCCL

#include <array>
#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

#include "epistle/error.hpp"

#include "dispatch/cuda/alltoall/exchange_plan.hpp"
#include "gpu/nccl/nccl_library.hpp"

namespace epistle::nccl {
namespace {

std::string load_error(const std::string& path) {
  try {
    static_cast<void>(load_nccl(path));
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUnsupported);
    return error.what();
  }
  ADD_FAILURE() << path << " was loaded";
  return {};
}

TEST(NcclLibrary, MissingLibrarySaysWhatToInstall) {
  const std::string path = "/nonexistent/libnccl-of-nobody.so.2";
  // Twice: a failure is not kept.
  for (int attempt = 0; attempt < 2; ++attempt) {
    const std::string message = load_error(path);
    for (const char* const part : {path.c_str(), "install NCCL 2.18", "EPISTLE_NCCL_LIBRARY", "direct"}) {
      EXPECT_NE(message.find(part), std::string::npos) << message;
    }
  }
}

TEST(NcclLibrary, OtherLibraryIsRefused) {
  const std::string message = load_error("libm.so.6");
  EXPECT_NE(message.find("no function ncclGetVersion"), std::string::npos) << message;
}

TEST(NcclLibrary, VersionsAreReadAsNcclWritesThem) {
  EXPECT_EQ(version_text(22809), "2.28.9");
  EXPECT_EQ(version_text(21800), "2.18.0");
  EXPECT_EQ(version_text(2804), "2.8.4");
}

bool same(const Block& block, std::int64_t begin, std::int64_t num_rows) {
  return block.begin == begin && block.num_rows == num_rows;
}

TEST(PairTable, BlocksStandOneBehindTheOther) {
  // [source, destination]
  const std::vector<std::int32_t> pairs = {3, 1, 4,  //
                                           0, 5, 9,  //
                                           2, 6, 0};
  const PairTable table(3, pairs);
  EXPECT_TRUE(same(table.packed(0, 1), 0, 1));
  EXPECT_TRUE(same(table.packed(0, 2), 1, 4));
  EXPECT_TRUE(same(table.packed(1, 0), 0, 0));
  EXPECT_TRUE(same(table.packed(1, 2), 0, 9));
  EXPECT_TRUE(same(table.packed(2, 1), 2, 6));
  EXPECT_EQ(table.packed(1, 1).num_rows, 0);
  // The own pairs have places among what is received.
  EXPECT_TRUE(same(table.received(0, 0), 0, 3));
  EXPECT_TRUE(same(table.received(2, 0), 3, 2));
  EXPECT_TRUE(same(table.received(2, 1), 6, 6));
  EXPECT_EQ(table.num_received(1), 12);
  EXPECT_EQ(table.packed_end(0), 5);
  EXPECT_EQ(table.packed_end(1), 9);
  EXPECT_EQ(table.packed_end(2), 8);
}

TEST(PairTable, TotalsOfTheDeviceGiveTheSame) {
  constexpr int kNumRanks = 3;
  const std::vector<std::int32_t> pairs = {3, 1, 4, 0, 5, 9, 2, 6, 0};
  std::vector<cuda::HandleTotals> totals(kNumRanks);
  for (int rank = 0; rank < kNumRanks; ++rank) {
    cuda::HandleTotals& own = totals[static_cast<std::size_t>(rank)];
    own.pair_begin[0] = 0;
    for (int source = 0; source < kNumRanks; ++source) {
      const auto at = static_cast<std::size_t>(source * kNumRanks);
      own.pair_begin[source + 1] = own.pair_begin[source] + pairs[at + static_cast<std::size_t>(rank)];
      own.stage_begin[source] = 0;
      for (int before = 0; before < rank; ++before) {
        if (before != source) own.stage_begin[source] += pairs[at + static_cast<std::size_t>(before)];
      }
    }
  }
  const PairTable expected(kNumRanks, pairs);
  const PairTable table(totals);
  for (int a = 0; a < kNumRanks; ++a) {
    EXPECT_EQ(table.num_received(a), expected.num_received(a));
    EXPECT_EQ(table.packed_end(a), expected.packed_end(a));
    for (int b = 0; b < kNumRanks; ++b) {
      const Block packed = expected.packed(a, b);
      const Block received = expected.received(a, b);
      EXPECT_TRUE(same(table.packed(a, b), packed.begin, packed.num_rows)) << a << " " << b;
      EXPECT_TRUE(same(table.received(a, b), received.begin, received.num_rows)) << a << " " << b;
    }
  }
}

TEST(PairTable, PairsWithoutAPlaceLeaveGaps) {
  // Rank 0 has 4 pairs for rank 1, of which 3 fit, and 2 for rank 2, packed behind all 4.
  std::vector<cuda::HandleTotals> totals(3);
  totals[1].pair_begin[1] = totals[1].pair_begin[2] = totals[1].pair_begin[3] = 3;
  totals[2].pair_begin[1] = totals[2].pair_begin[2] = totals[2].pair_begin[3] = 2;
  totals[2].stage_begin[0] = 4;
  const PairTable table(totals);
  EXPECT_TRUE(same(table.packed(0, 1), 0, 3));
  EXPECT_TRUE(same(table.packed(0, 2), 4, 2));
  EXPECT_EQ(table.packed_end(0), 6);
  EXPECT_TRUE(same(table.received(0, 2), 0, 2));
}

}  // namespace
}  // namespace epistle::nccl

#endif
