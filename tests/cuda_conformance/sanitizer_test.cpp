// The reduced set for compute-sanitizer: a few small scenarios whose calls go through every kind of kernel.
#include <chrono>
#include <functional>
#include <string>
#include <tuple>
#include <vector>

#include <gtest/gtest.h>

#include "support/cuda_devices.hpp"
#include "support/cuda_play.hpp"
#include "support/dispatcher_names.hpp"
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
    s.config.order = SumOrder::kFlat;
    s.config.input = DType::kFp8E4m3;
    s.config.hidden = 144;
    s.config.sizing = Capacity{.rows_per_rank = 8};
    s.config.overflow = OverflowPolicy::kDrop;
  });
  add("ExpertMajorAligned", [](Scenario& s) {
    s.config.layout = ExpertMajor{.alignment = 8};
    s.id_type = IdType::kInt64;
  });
  add("ExpertMajorFlatCapacity", [](Scenario& s) {
    s.config.layout = ExpertMajor{};
    s.config.order = SumOrder::kFlat;
    s.config.sizing = Capacity{.rows_per_rank = 60};
    s.stage_combine = true;
  });
  add("ExpertBlocksDrop", [](Scenario& s) {
    s.config.layout = ExpertBlocks{.rows_per_expert = 4};
    s.config.overflow = OverflowPolicy::kDrop;
    s.hot_experts = true;
  });
  add("ExpertBlocksAllFit", [](Scenario& s) {
    s.config.layout = ExpertBlocks{.rows_per_expert = 18};
    s.config.sizing = Capacity{};
    s.config.hidden = 2112;  // more than a chunk of lines
    s.num_rounds = 2;
  });
  add("TokenMajorAllFitFp8", [](Scenario& s) {
    s.config.input = DType::kFp8E4m3;
    s.config.hidden = 2064;
    s.config.sizing = Capacity{.rows_per_rank = 18};
  });
  add("RawCombined", [](Scenario& s) {
    s.config.input = DType::kRaw;
    s.config.hidden = 48;
    s.config.raw_scale_bytes = 7;
    s.config.expert_output = DType::kFp16;
    s.config.expert_output_hidden = 72;
  });
  add("ExpertMajorStrided", [](Scenario& s) {
    s.config.layout = ExpertMajor{.alignment = 4};
    s.strided = true;
    s.stage_combine = true;
  });
  add("TokenMajorTwoBuffers", [](Scenario& s) {
    s.config.num_buffers = 2;
    s.num_rounds = 2;
  });
  return all;
}

using SanitizerParam = std::tuple<std::string, NamedScenario>;

class CudaSanitizer : public OnGpu<::testing::TestWithParam<SanitizerParam>> {};

TEST_P(CudaSanitizer, TwoRanks) {
  const auto& [dispatcher, named] = GetParam();
  expect_play(dispatcher, named.scenario, on_cuda({.device = 0}), kSanitizerTimeout);
}

// For tools that run one kernel at a time: there two ranks on one GPU would wait for each other for ever.
TEST_P(CudaSanitizer, OneRank) {
  const auto& [dispatcher, named] = GetParam();
  expect_play(dispatcher, with_ranks(named.scenario, 1), on_cuda({.device = 0}), kSanitizerTimeout);
}

INSTANTIATE_TEST_SUITE_P(All, CudaSanitizer,
                         ::testing::Combine(::testing::ValuesIn(one_gpu_dispatcher_names()),
                                            ::testing::ValuesIn(sanitizer_scenarios())),
                         [](const auto& param_info) {
                           return std::get<0>(param_info.param) + "_" + std::get<1>(param_info.param).name;
                         });

}  // namespace
}  // namespace epistle::testing
