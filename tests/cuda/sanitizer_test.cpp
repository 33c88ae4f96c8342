// The reduced set for compute-sanitizer: a few small scenarios whose calls go through every kind of kernel.
#include <chrono>
#include <functional>
#include <string>
#include <tuple>
#include <vector>

#include <gtest/gtest.h>

#include "support/cuda_devices.hpp"
#include "support/cuda_play.hpp"
#include "support/named_scenarios.hpp"

namespace epistle::testing {
namespace {

// Kernels run some hundred times slower under the race checker.
constexpr std::chrono::milliseconds kSanitizerTimeout{300'000};

std::vector<NamedScenario> sanitizer_scenarios() {
  std::vector<NamedScenario> all;
  const auto add = [&all](const std::string& name, const std::function<void(Scenario&)>& change) {
    Scenario scenario;
    scenario.config = small_config();
    scenario.config.max_tokens = 9;
    scenario.tokens_per_rank = {9, 6};
    scenario.num_rounds = 1;
    change(scenario);
    all.push_back({name, scenario});
  };
  add("TokenMajor", [](Scenario&) {});
  add("TokenMajorFlatFp8Capacity", [](Scenario& s) {
    s.config.combine = CombineMode::kFlat;
    s.config.dtype = DType::kFp8E4m3;
    s.config.hidden = 144;
    s.config.sizing = Sizing::kCapacity;
    s.config.capacity_rows = 8;
    s.config.overflow = OverflowPolicy::kDrop;
  });
  add("ExpertMajorAligned", [](Scenario& s) {
    s.config.layout = OutputLayout::kExpertMajor;
    s.config.alignment = 8;
    s.id_type = IdType::kInt64;
  });
  add("ExpertMajorFlatCapacity", [](Scenario& s) {
    s.config.layout = OutputLayout::kExpertMajor;
    s.config.combine = CombineMode::kFlat;
    s.config.sizing = Sizing::kCapacity;
    s.config.capacity_rows = 60;
    s.stage_combine = true;
  });
  add("ExpertSlotsDrop", [](Scenario& s) {
    s.config.layout = OutputLayout::kExpertSlots;
    s.config.capacity_rows = 4;
    s.config.overflow = OverflowPolicy::kDrop;
    s.hot_experts = true;
  });
  add("RawCombined", [](Scenario& s) {
    s.config.dtype = DType::kRaw;
    s.config.hidden = 48;
    s.config.raw_scale_bytes = 7;
    s.config.combine_dtype = DType::kFp16;
    s.config.combine_hidden = 72;
  });
  return all;
}

class CudaSanitizer : public OnGpu<::testing::TestWithParam<NamedScenario>> {};

TEST_P(CudaSanitizer, TwoRanks) {
  expect_play("direct", GetParam().scenario, {.cuda = {.device = 0}}, kSanitizerTimeout);
}

// For tools that run one kernel at a time: there two ranks on one GPU would wait for each other for ever.
TEST_P(CudaSanitizer, OneRank) {
  expect_play("direct", with_ranks(GetParam().scenario, 1), {.cuda = {.device = 0}}, kSanitizerTimeout);
}

INSTANTIATE_TEST_SUITE_P(All, CudaSanitizer, ::testing::ValuesIn(sanitizer_scenarios()),
                         [](const auto& param_info) { return param_info.param.name; });

}  // namespace
}  // namespace epistle::testing
