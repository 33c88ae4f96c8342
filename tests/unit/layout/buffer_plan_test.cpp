// The buffers of every dispatcher: what goes into them, and where they lie.
#include "layout/buffer_plan.hpp"

#include <string>

#include <gtest/gtest.h>

#include "dispatch/call/dispatcher_functions.hpp"
#include "support/scenario.hpp"

namespace epistle::testing {
namespace {

constexpr int kPlanRanks = 4;
constexpr std::int64_t kTokens = 32;
constexpr std::int64_t kRowBytes = std::int64_t{2} << 20;     // a page of either device: bytes are rows
constexpr std::int64_t kScaleBytes = std::int64_t{64} << 10;  // those of kTokens rows are whole pages

DispatcherConfig config_of(OutputLayout layout, SumOrder order) {
  DispatcherConfig config;
  config.input = DType::kFp8E4m3;
  config.hidden = kRowBytes;
  config.expert_output_hidden = kRowBytes / dtype_bytes(DType::kBf16);
  config.num_experts = 8;
  config.top_k = 2;
  config.max_tokens = kTokens;
  config.order = order;
  set_layout(config, layout, SizingMode::kExact, /*capacity_rows=*/40, /*alignment=*/16);
  return config;
}

BufferPlan plan_of(const DispatcherInfo& info, const DispatcherConfig& config) {
  return DispatcherInfo::Functions::of(info).plan(resolve_config(config, kPlanRanks), kPlanRanks);
}

template <typename Visit>
void for_each_plan(const Visit& visit) {
  for (const DispatcherInfo* info : dispatchers()) {
    for (const OutputLayout layout :
         {OutputLayout::kTokenMajor, OutputLayout::kExpertMajor, OutputLayout::kExpertBlocks}) {
      SCOPED_TRACE(std::string(to_string(info->device())) + " " + std::string(info->name()) + " " +
                   std::string(to_string(layout)));
      visit(*info, plan_of(*info, config_of(layout, SumOrder::kHierarchical)));
    }
  }
}

TEST(BufferPlan, BeginsWithTheControlSectionAndReservesTheLargestDemand) {
  for_each_plan([](const DispatcherInfo&, const BufferPlan& plan) {
    EXPECT_EQ(plan.section_offset(BufferSection::kControl), 0);
    EXPECT_EQ(plan.reserved_bytes(), plan.buffer_bytes(plan.max_demand()));
  });
}

TEST(BufferPlan, ControlSectionOnTheHostHasTwoGenerationsOfCounts) {
  for_each_plan([](const DispatcherInfo& info, const BufferPlan& plan) {
    if (info.device() != Device::kHost) return;
    const DispatchLayout& layout = plan.layout();
    EXPECT_LE(layout.counts_offset(1) + layout.counts_entries() * DispatchLayout::kCountBytes,
              plan.section_bytes({})[BufferSection::kControl]);
  });
}

/// Rows in the sections between sender and receiver, in multiples of kTokens.
struct RowsInBetween {
  std::int64_t send_rows = 0;
  std::int64_t send_scales = 0;
  std::int64_t stage_rows = 0;
  std::int64_t stage_scales = 0;

  bool operator==(const RowsInBetween&) const = default;
};

RowsInBetween rows_in_between(const BufferPlan& plan) {
  const SectionBytes bytes = plan.section_bytes(plan.max_demand());
  for (const BufferSection section : {BufferSection::kSendRows, BufferSection::kStageRows}) {
    EXPECT_EQ(bytes[section] % (kTokens * kRowBytes), 0);
  }
  return {.send_rows = bytes[BufferSection::kSendRows] / (kTokens * kRowBytes),
          .send_scales = bytes[BufferSection::kSendScales] / (kTokens * kScaleBytes),
          .stage_rows = bytes[BufferSection::kStageRows] / (kTokens * kRowBytes),
          .stage_scales = bytes[BufferSection::kStageScales] / (kTokens * kScaleBytes)};
}

// Each token goes to two ranks of four, which have two experts each: 2 rows sent per token; up to 4 pairs and 8 rows
// received for every token of this rank.
TEST(BufferPlan, HoldsTheRowsInBetweenAndNoOthers) {
  struct Expected {
    Device device;
    const char* name;
    RowsInBetween token_major;
    RowsInBetween partial_sums;  ///< expert_major
    RowsInBetween flat_sums;     ///< expert_major
  };
  const RowsInBetween none;
  const RowsInBetween input{.send_rows = 1, .send_scales = 1};
  const RowsInBetween packed{.send_rows = 2, .send_scales = 2, .stage_rows = 2};
  const Expected all[] = {
      {Device::kHost, "direct", none, none, none},
      {Device::kHost, "low_latency", none, none, none},
      {Device::kHost, "reference", input, input, input},
      {Device::kHost, "alltoall", packed, {4, 2, 8, 8}, {8, 2, 8, 8}},
      {Device::kCuda, "direct", none, {.stage_rows = 2}, none},
      {Device::kCuda, "alltoall", packed, {4, 2, 4, 4}, {8, 2, 8, 8}},
  };
  for (const Expected& expected : all) {
    SCOPED_TRACE(std::string(to_string(expected.device)) + " " + expected.name);
    const DispatcherInfo& info = find_dispatcher(expected.name, expected.device);
    const auto expect_rows = [&](OutputLayout layout, SumOrder order, const RowsInBetween& rows) {
      EXPECT_EQ(rows_in_between(plan_of(info, config_of(layout, order))), rows)
          << to_string(layout) << " " << to_string(order);
    };
    for (const SumOrder order : {SumOrder::kHierarchical, SumOrder::kFlat, SumOrder::kDeepEpV2}) {
      expect_rows(OutputLayout::kTokenMajor, order, expected.token_major);
    }
    expect_rows(OutputLayout::kExpertMajor, SumOrder::kHierarchical, expected.partial_sums);
    expect_rows(OutputLayout::kExpertMajor, SumOrder::kDeepEpV2, expected.partial_sums);
    expect_rows(OutputLayout::kExpertMajor, SumOrder::kFlat, expected.flat_sums);
  }
}

TEST(RowDemand, RisesFieldByField) {
  RowDemand demand{.tokens = 5, .output_rows = 1, .send_rows = 7};
  demand.raise_to({.tokens = 4, .output_rows = 9, .grad_rows = 2, .receive_rows = 3, .receive_pairs = 8});
  EXPECT_EQ(demand.tokens, 5);
  EXPECT_EQ(demand.output_rows, 9);
  EXPECT_EQ(demand.grad_rows, 2);
  EXPECT_EQ(demand.send_rows, 7);
  EXPECT_EQ(demand.receive_rows, 3);
  EXPECT_EQ(demand.send_pairs, 0);
  EXPECT_EQ(demand.receive_pairs, 8);
}

}  // namespace
}  // namespace epistle::testing
