// The tuning table and what is read from it, with the device's properties as values.
#include "dispatch/cuda/direct/tuning.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "dispatch/cuda/direct/tuning_table.hpp"

namespace epistle::cuda {
namespace {

constexpr int kNumSmsOfH200 = 132;
constexpr std::array kCalls = {TunedCall::kDispatch, TunedCall::kColdDispatch, TunedCall::kCombine};
constexpr std::array kLayouts = {OutputLayout::kTokenMajor, OutputLayout::kExpertMajor, OutputLayout::kExpertBlocks};
constexpr std::array kRowClasses = {LayoutClass::kTokenMajor, LayoutClass::kExpertRows};

OutputLayout layout_of(LayoutClass row_class) {
  return row_class == LayoutClass::kTokenMajor ? OutputLayout::kTokenMajor : OutputLayout::kExpertMajor;
}

std::string text_of(const TuningQuery& query) {
  return "call " + std::to_string(static_cast<int>(query.call)) + ", " + std::string(to_string(query.layout)) +
         ", tokens " + std::to_string(query.num_tokens) + " of " + std::to_string(query.row_bytes) + " bytes, ranks " +
         std::to_string(query.num_ranks) + ", SMs " + std::to_string(query.num_sms) + " of " +
         std::to_string(query.sm_share) + ", sm_" + std::to_string(query.compute_major) + "x, mover " +
         std::to_string(static_cast<int>(query.mover));
}

/// Calls `visit` with queries on both sides of every limit of the table, on the GPUs of several sizes and ages.
template <typename Visit>
void for_each_query(const Visit& visit) {
  std::set<std::int64_t> tokens = {0, 1, 100'000'000};
  std::set<std::int64_t> row_sizes = {14'336};
  std::set<int> budgets = {0, 1, 2, 3, 8, 16, 1000};
  for (const TuningRow& row : kTuningTable) {
    if (row.max_tokens != kAnyTokens) tokens.insert({row.max_tokens, row.max_tokens + 1});
    if (row.max_row_bytes != kAnyRow) row_sizes.insert({row.max_row_bytes, row.max_row_bytes + 1});
    if (row.max_sms != kAnySms) budgets.insert({row.max_sms, row.max_sms + 1});
  }
  for (const TunedCall call : kCalls) {
    for (const OutputLayout layout : kLayouts) {
      for (const std::int64_t num_tokens : tokens) {
        for (const int num_ranks : {1, 2, 3, 8, 72}) {
          for (const int num_sms : budgets) {
            for (const int sm_share : {1, 2, 8, 16, 66, kNumSmsOfH200, 148}) {
              for (const int compute_major : {8, 9, 10, 12}) {
                for (const CudaMover mover :
                     {CudaMover::kAuto, CudaMover::kVector, CudaMover::kBulk, CudaMover::kCopyEngines}) {
                  for (const std::int64_t row_bytes : row_sizes) {
                    visit(TuningQuery{.call = call,
                                      .layout = layout,
                                      .num_tokens = num_tokens,
                                      .row_bytes = row_bytes,
                                      .num_ranks = num_ranks,
                                      .num_sms = num_sms,
                                      .sm_share = sm_share,
                                      .compute_major = compute_major,
                                      .mover = mover});
                  }
                }
              }
            }
          }
        }
      }
    }
  }
}

// ---- The table ------------------------------------------------------------------------------------------------------

TEST(TuningTable, LastRowOfEveryCallAndLayoutIsForAnything) {
  for (const TunedCall call : kCalls) {
    for (const LayoutClass row_class : kRowClasses) {
      const TuningRow* last = nullptr;
      for (const TuningRow& row : kTuningTable) {
        if (row.call == call && row.layout == row_class) last = &row;
      }
      ASSERT_NE(last, nullptr);
      EXPECT_EQ(last->max_tokens, kAnyTokens) << last->measured;
      EXPECT_EQ(last->max_row_bytes, kAnyRow) << last->measured;
      EXPECT_EQ(last->max_sms, kAnySms) << last->measured;
    }
  }
}

TEST(TuningTable, RowsHoldSensibleValuesAndSayWhereTheyComeFrom) {
  for (const TuningRow& row : kTuningTable) {
    EXPECT_FALSE(row.bucket.empty()) << row.measured;
    EXPECT_FALSE(row.measured.empty()) << row.bucket;
    EXPECT_GE(row.max_tokens, 1) << row.measured;
    EXPECT_GE(row.default_sms, 1) << row.measured;
    EXPECT_LE(row.default_sms, row.max_sms) << row.measured;
    EXPECT_GE(row.peer_permille, 1) << row.measured;
    EXPECT_LE(row.peer_permille, 1000) << row.measured;
  }
}

TEST(TuningTable, EveryRowIsChosenBySomeCall) {
  std::set<const TuningRow*> chosen;
  for_each_query([&](const TuningQuery& query) { chosen.insert(choose(query).row); });
  for (const TuningRow& row : kTuningTable) {
    EXPECT_TRUE(chosen.contains(&row)) << "no call gets to the row '" << row.bucket << "', " << row.measured;
  }
}

// ---- Choices --------------------------------------------------------------------------------------------------------

TEST(TuningChoice, RowFitsTheQuery) {
  for_each_query([](const TuningQuery& query) {
    const TuningRow& row = *choose(query).row;
    ASSERT_EQ(row.call, query.call) << text_of(query);
    ASSERT_EQ(row.layout == LayoutClass::kTokenMajor, query.layout == OutputLayout::kTokenMajor) << text_of(query);
    ASSERT_LE(query.num_tokens, row.max_tokens) << text_of(query);
    ASSERT_LE(query.row_bytes, row.max_row_bytes) << text_of(query);
  });
}

TEST(TuningChoice, BlocksStayWithinShareAndBudget) {
  for_each_query([](const TuningQuery& query) {
    const TuningChoice choice = choose(query);
    ASSERT_GE(choice.num_blocks, 1) << text_of(query);
    ASSERT_LE(choice.num_blocks, query.sm_share) << text_of(query);
    ASSERT_GE(choice.peer_blocks, 1) << text_of(query);
    ASSERT_LE(choice.peer_blocks, choice.num_blocks) << text_of(query);
    ASSERT_GE(pack_blocks(query), 1) << text_of(query);
    ASSERT_LE(pack_blocks(query), query.sm_share) << text_of(query);
    if (query.num_sms == 0) return;
    // The user's budget is used whole: who asks for more SMs wants them.
    ASSERT_EQ(choice.num_blocks, std::min(query.num_sms, query.sm_share)) << text_of(query);
    ASSERT_EQ(pack_blocks(query), std::min(query.num_sms, query.sm_share)) << text_of(query);
  });
}

TEST(TuningChoice, BulkCopiesOnlyWhereTheGpuHasThemAndTheUserLetsThem) {
  for_each_query([](const TuningQuery& query) {
    const bool bulk = choose(query).bulk;
    const bool can_bulk = query.compute_major >= kFirstMajorWithBulkCopies && query.row_bytes % kBulkCopyBytes == 0;
    if (!can_bulk || query.mover == CudaMover::kVector) {
      ASSERT_FALSE(bulk) << text_of(query);
    } else if (query.mover == CudaMover::kBulk) {
      ASSERT_TRUE(bulk) << text_of(query);
    }
  });
}

// A bulk copy of anything but whole vectors never ends.
TEST(TuningChoice, NoBulkCopiesOfRowsThatAreNoWholeVectors) {
  for_each_query([](const TuningQuery& query) {
    TuningQuery uneven = query;
    uneven.row_bytes = query.row_bytes / kBulkCopyBytes * kBulkCopyBytes + kBulkCopyBytes / 2;
    ASSERT_FALSE(choose(uneven).bulk) << text_of(uneven);
  });
}

TEST(TuningChoice, KernelsOfAllRanksOnAGpuAreResidentTogether) {
  for (const int num_sms_of_gpu : {kNumSmsOfH200, 108, 148, 188}) {
    for (int num_ranks = 1; num_ranks <= 16; ++num_ranks) {
      for (const int num_sms : {0, 1, 8, 16, 132, 1000}) {
        for (const TunedCall call : kCalls) {
          for (const OutputLayout layout : kLayouts) {
            const TuningQuery query{.call = call,
                                    .layout = layout,
                                    .num_tokens = 4096,
                                    .num_ranks = num_ranks,
                                    .num_sms = num_sms,
                                    .sm_share = num_sms_of_gpu / num_ranks};
            // One block takes one SM: their shared memory and threads leave no room for a second.
            ASSERT_LE(choose(query).num_blocks * num_ranks, num_sms_of_gpu) << text_of(query);
            ASSERT_LE(pack_blocks(query) * num_ranks, num_sms_of_gpu) << text_of(query);
          }
        }
      }
    }
  }
}

TEST(TuningChoice, DependsOnNothingButTheQuery) {
  for_each_query([](const TuningQuery& query) {
    const TuningChoice first = choose(query);
    const TuningChoice second = choose(query);
    ASSERT_EQ(first.row, second.row);
    ASSERT_EQ(first.num_blocks, second.num_blocks);
    ASSERT_EQ(first.peer_blocks, second.peer_blocks);
    ASSERT_EQ(first.bulk, second.bulk);
  });
}

// ---- For people -----------------------------------------------------------------------------------------------------

TEST(TuningDescription, NamesTheRowsMeasurement) {
  for (const TunedCall call : kCalls) {
    for (const LayoutClass row_class : kRowClasses) {
      for (const std::int64_t num_tokens : {1, 128, 4096, 100'000}) {
        const TuningQuery query{.call = call,
                                .layout = layout_of(row_class),
                                .num_tokens = num_tokens,
                                .num_ranks = 2,
                                .sm_share = kNumSmsOfH200};
        const TuningChoice choice = choose(query);
        const std::string text = describe(query);
        EXPECT_NE(text.find(choice.row->measured), std::string::npos) << text;
        EXPECT_NE(text.find(choice.row->bucket), std::string::npos) << text;
        EXPECT_NE(text.find(std::to_string(choice.num_blocks) + " SMs"), std::string::npos) << text;
        EXPECT_EQ(text.find('\n'), std::string::npos) << text;
      }
    }
  }
}

TEST(TuningDescription, SaysWhenTheCopyEnginesMoveTheRows) {
  TuningQuery query{.num_tokens = 4096, .num_ranks = 2, .sm_share = kNumSmsOfH200, .mover = CudaMover::kCopyEngines};
  EXPECT_NE(describe(query).find("copy engines"), std::string::npos) << describe(query);
  query.call = TunedCall::kCombine;
  EXPECT_EQ(describe(query).find("copy engines"), std::string::npos) << describe(query);
}

}  // namespace
}  // namespace epistle::cuda
