// The control section of a rank on a GPU, and the buffers beside it. Needs neither CUDA nor a GPU: plain values.
#include "dispatch/cuda/device/device_control.hpp"

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "dispatch/call/dispatcher_functions.hpp"
#include "layout/buffer_plan.hpp"

namespace epistle {
namespace {

constexpr std::int64_t kControlAlignment = 128;
constexpr std::int64_t kPageBytes = std::int64_t{2} << 20U;  // what the CUDA VMM API gives on an H200

struct Part {
  std::string name;
  std::int64_t begin;
  std::int64_t num_bytes;  ///< that its users write
};

/// The parts in the order of the section, sized by what kernels store there.
std::vector<Part> parts_of(const DeviceControl& control) {
  const std::int64_t ranks = control.num_ranks;
  const std::int64_t other_ranks = ranks - 1;
  const std::int64_t staged = control.top_k < other_ranks ? control.top_k : other_ranks;
  return {
      {"ready", control.ready_offset(), 2 * ranks * 8},
      {"early ready", control.early_ready_offset(), ranks * 8},
      {"done", control.done_offset(), ranks * DeviceControl::kMaxBlocks * 8},
      {"counts", control.counts_offset(), ranks * control.count_blocks * (ranks + control.num_experts + 1) * 8},
      {"outcomes", control.outcomes_offset(), ranks * (ranks + control.max_local_experts() + 1) * 4},
      {"pair flags", control.pair_flags_offset(), control.max_tokens * ranks * 4},
      {"stage flags", control.stage_flags_offset(), control.max_tokens * staged * 4},
  };
}

template <typename Visit>
void for_each_control(const Visit& visit) {
  for (const std::int32_t num_ranks : {1, 2, 3, 8, 16, 72}) {
    for (const std::int32_t num_experts : {1, 7, 256, 4096}) {
      for (const std::int32_t top_k : {1, 8, 64}) {
        for (const std::int64_t max_tokens : {std::int64_t{0}, std::int64_t{1}, std::int64_t{4096},
                                              std::int64_t{1} << 20U, (std::int64_t{1} << 31U) - 1}) {
          for (const std::int32_t count_blocks : {1, 5, 16}) {
            visit(DeviceControl{.num_ranks = num_ranks,
                                .num_experts = num_experts,
                                .top_k = top_k,
                                .max_tokens = max_tokens,
                                .count_blocks = count_blocks});
          }
        }
      }
    }
  }
}

TEST(DeviceControl, PartsAreAlignedAndDoNotOverlap) {
  for_each_control([](const DeviceControl& control) {
    std::int64_t end = 0;
    for (const Part& part : parts_of(control)) {
      ASSERT_EQ(part.begin % kControlAlignment, 0) << part.name;
      ASSERT_GE(part.begin, end) << part.name;
      ASSERT_LT(part.begin - end, kControlAlignment) << part.name << " leaves a hole before it";
      end = part.begin + part.num_bytes;
    }
    ASSERT_GE(control.num_bytes(), end);
    ASSERT_LT(control.num_bytes() - end, kControlAlignment);
  });
}

TEST(DeviceControl, OutcomesHoldTheWidestRank) {
  for_each_control([](const DeviceControl& control) {
    const ExpertPartition partition{control.num_experts, control.num_ranks};
    for (std::int32_t rank = 0; rank < control.num_ranks; ++rank) {
      ASSERT_LE(control.num_ranks + partition.num_local_experts(rank) + 1, control.outcome_entries());
    }
  });
}

TEST(DeviceControl, GrowsWithWhatItHolds) {
  const DeviceControl small{.num_ranks = 8, .num_experts = 256, .top_k = 4, .max_tokens = 4096, .count_blocks = 8};
  DeviceControl larger = small;
  larger.count_blocks = 16;
  EXPECT_GT(larger.num_bytes(), small.num_bytes());
  larger = small;
  larger.max_tokens = 4097;
  EXPECT_GT(larger.num_bytes(), small.num_bytes());
  larger = small;
  larger.top_k = 7;
  EXPECT_GT(larger.num_bytes(), small.num_bytes());
  // A token goes to at most seven other ranks.
  DeviceControl widest = larger;
  widest.top_k = 64;
  EXPECT_EQ(widest.num_bytes(), larger.num_bytes());
}

// ---- Buffers --------------------------------------------------------------------------------------------------------

template <typename Visit>
void for_each_plan(const PlanRules& rules, const Visit& visit) {
  for (const OutputLayout layout :
       {OutputLayout::kTokenMajor, OutputLayout::kExpertMajor, OutputLayout::kExpertBlocks}) {
    for (const SumOrder combine : {SumOrder::kHierarchical, SumOrder::kFlat}) {
      for (const SizingMode sizing : {SizingMode::kExact, SizingMode::kCapacity}) {
        for (const std::int32_t num_ranks : {1, 2, 16, 72}) {
          const DeviceControl control{
              .num_ranks = num_ranks, .num_experts = 256, .top_k = 8, .max_tokens = 1000, .count_blocks = 16};
          LayoutParams params;
          params.num_ranks = num_ranks;
          params.num_experts = control.num_experts;
          params.top_k = control.top_k;
          params.max_tokens = control.max_tokens;
          params.row_bytes = 7168;
          params.scale_bytes = 224;
          params.combine_row_bytes = 14336;
          params.layout = layout;
          params.alignment = 128;
          params.sizing = sizing;
          params.capacity_rows = sizing == SizingMode::kCapacity || layout == OutputLayout::kExpertBlocks ? 512 : 0;
          params.order = combine;
          const EngineSizes engine{.control_bytes = control.num_bytes(), .page_bytes = kPageBytes};
          visit(BufferPlan(rules, params, engine), engine);
        }
      }
    }
  }
}

const PlanRules& rules_of(const DispatcherInfo& info) {
  return DispatcherInfo::Functions::of(info).plan(ResolvedConfig{}, 1).rules();
}

class DevicePlan : public ::testing::TestWithParam<const DispatcherInfo*> {};

TEST_P(DevicePlan, SectionsLieOneBehindTheOtherInWholePages) {
  for_each_plan(rules_of(*GetParam()), [](const BufferPlan& plan, const EngineSizes&) {
    const SectionBytes most = plan.section_bytes(plan.max_demand());
    const SectionBytes first = plan.section_bytes(plan.initial_demand());
    std::int64_t end = 0;
    for (const BufferSection section : kBufferSections) {
      ASSERT_EQ(plan.section_offset(section), end);
      ASSERT_EQ(most[section] % kPageBytes, 0);
      end += most[section];
      // What is committed first lies within what is reserved.
      ASSERT_LE(first[section], most[section]);
    }
    ASSERT_EQ(end, plan.reserved_bytes());
  });
}

TEST_P(DevicePlan, SectionsHoldWhatTheDeviceWrites) {
  for_each_plan(rules_of(*GetParam()), [](const BufferPlan& plan, const EngineSizes& engine) {
    const DispatchLayout& layout = plan.layout();
    const LayoutParams& params = layout.params();
    const SectionBytes bytes = plan.section_bytes(plan.max_demand());
    EXPECT_GE(bytes[BufferSection::kControl], engine.control_bytes);
    EXPECT_GE(bytes[BufferSection::kRecords], params.max_tokens * params.num_ranks * layout.pair_record_bytes());
    EXPECT_GE(bytes[BufferSection::kReceiveRows], layout.max_output_rows() * params.row_bytes);
    EXPECT_GE(bytes[BufferSection::kReceiveScales], layout.max_output_rows() * params.scale_bytes);
    EXPECT_GE(bytes[BufferSection::kCombineRows], layout.max_output_rows() * params.combine_row_bytes);
  });
}

TEST_P(DevicePlan, RecordsHaveRoomFromTheStart) {
  for_each_plan(rules_of(*GetParam()), [](const BufferPlan& plan, const EngineSizes&) {
    EXPECT_EQ(plan.section_bytes(plan.initial_demand())[BufferSection::kRecords],
              plan.section_bytes(plan.max_demand())[BufferSection::kRecords]);
  });
}

std::vector<const DispatcherInfo*> dispatchers_on_gpus() {
  std::vector<const DispatcherInfo*> found;
  for (const DispatcherInfo* info : dispatchers()) {
    if (info->device() == Device::kCuda) found.push_back(info);
  }
  return found;
}

INSTANTIATE_TEST_SUITE_P(All, DevicePlan, ::testing::ValuesIn(dispatchers_on_gpus()),
                         [](const auto& param_info) { return std::string(param_info.param->name()); });

TEST(DeviceDirectPlan, HasAStageForPartialSumsAndNothingElseInBetween) {
  for_each_plan(rules_of(find_dispatcher("direct", Device::kCuda)), [](const BufferPlan& plan, const EngineSizes&) {
    const LayoutParams& params = plan.layout().params();
    const SectionBytes bytes = plan.section_bytes(plan.max_demand());
    // Senders write into the receiver's rows: nothing is packed.
    EXPECT_EQ(bytes[BufferSection::kSendRows], 0);
    EXPECT_EQ(bytes[BufferSection::kSendScales], 0);
    EXPECT_EQ(bytes[BufferSection::kStageScales], 0);
    // Only partial sums come back into a stage, at most one per token and other rank that it goes to.
    const std::int64_t other_ranks = params.num_ranks - 1;
    const std::int64_t staged = params.max_tokens * (params.top_k < other_ranks ? params.top_k : other_ranks);
    if (plan.returns_partial_sums()) {
      EXPECT_GE(bytes[BufferSection::kStageRows], staged * params.combine_row_bytes);
      EXPECT_LT(bytes[BufferSection::kStageRows], staged * params.combine_row_bytes + kPageBytes);
    } else {
      EXPECT_EQ(bytes[BufferSection::kStageRows], 0);
    }
  });
}

}  // namespace
}  // namespace epistle
