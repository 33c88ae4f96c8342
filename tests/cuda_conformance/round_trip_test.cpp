// Every named scenario on the CUDA device, against the oracle: with every mover, as fused calls and as halves, with
// other SM budgets, and with 1 to 16 ranks on one GPU.
#include <string>
#include <tuple>
#include <variant>
#include <vector>

#include <gtest/gtest.h>

#include "epistle/cuda.hpp"

#include "support/cuda_devices.hpp"
#include "support/cuda_play.hpp"
#include "support/dispatcher_names.hpp"
#include "support/named_scenarios.hpp"

namespace epistle::testing {
namespace {

constexpr int kBulkCapability = 9;  // bulk copies came with sm_90

std::string mover_name(CudaMover mover) {
  switch (mover) {
    case CudaMover::kAuto:
      return "Auto";
    case CudaMover::kVector:
      return "Vector";
    case CudaMover::kBulk:
      return "Bulk";
    case CudaMover::kCopyEngines:
      return "CopyEngines";
  }
  return "Unknown";
}

// ---- Movers, halves, SM budgets -------------------------------------------------------------------------------------

using MoverParam = std::tuple<std::string, NamedScenario, CudaMover, bool>;

class CudaRoundTrip : public OnGpu<::testing::TestWithParam<MoverParam>> {};

TEST_P(CudaRoundTrip, OverThreads) {
  const auto& [dispatcher, named, mover, split_halves] = GetParam();
  if (mover == CudaMover::kBulk && device_attribute(cudaDevAttrComputeCapabilityMajor) < kBulkCapability) {
    GTEST_SKIP() << "bulk copies need compute capability 9.0";
  }
  if (const std::string reason = cannot_play(dispatcher, named.scenario); !reason.empty()) GTEST_SKIP() << reason;
  // 0 is what the tuning table says. The bits are the same, as all are those of the oracle.
  for (const int num_sms : {2, 4, 1, 0}) {
    SCOPED_TRACE("num_sms " + std::to_string(num_sms));
    expect_play(dispatcher, named.scenario, on_cuda({.num_sms = num_sms, .mover = mover}, split_halves));
    if (HasFailure()) return;
  }
}

std::string mover_case_name(const ::testing::TestParamInfo<MoverParam>& param_info) {
  const auto& [dispatcher, named, mover, split_halves] = param_info.param;
  return dispatcher + "_" + named.name + "_" + mover_name(mover) + (split_halves ? "_Halves" : "_Fused");
}

INSTANTIATE_TEST_SUITE_P(All, CudaRoundTrip,
                         ::testing::Combine(::testing::Values("direct"), ::testing::ValuesIn(named_scenarios()),
                                            ::testing::Values(CudaMover::kVector, CudaMover::kBulk), ::testing::Bool()),
                         mover_case_name);

/// Lines know no movers.
INSTANTIATE_TEST_SUITE_P(Lines, CudaRoundTrip,
                         ::testing::Combine(::testing::Values("low_latency"), ::testing::ValuesIn(named_scenarios()),
                                            ::testing::Values(CudaMover::kAuto), ::testing::Bool()),
                         mover_case_name);

/// Kernels that raise flags of rows move them alike.
std::vector<NamedScenario> flagged_scenarios() {
  std::vector<NamedScenario> chosen;
  for (NamedScenario named : named_scenarios()) {
    Scenario& scenario = named.scenario;
    DispatcherConfig& config = scenario.config;
    if (std::holds_alternative<TokenMajor>(config.layout) || scenario.domain_size > 0) continue;
    // Room for every routing, which is where rows go by lines.
    const std::int64_t most = config.max_tokens * scenario.num_ranks();
    if (std::holds_alternative<ExpertBlocks>(config.layout)) {
      config.layout = ExpertBlocks{.rows_per_expert = most};
      config.sizing = Capacity{};
    } else {
      const auto& groups = std::get<ExpertMajor>(config.layout);
      config.sizing = Capacity{.rows_per_rank = most * config.top_k + 4 * config.num_experts * groups.alignment};
    }
    chosen.push_back(named);
  }
  return chosen;
}

class CudaFlaggedRoundTrip : public OnGpu<::testing::TestWithParam<std::tuple<NamedScenario, bool>>> {};

TEST_P(CudaFlaggedRoundTrip, GivesTheSameBits) {
  const auto& [named, split_halves] = GetParam();
  if (const std::string reason = cannot_play("low_latency", named.scenario); !reason.empty()) GTEST_SKIP() << reason;
  for (const int num_sms : {2, 0}) {
    SCOPED_TRACE("num_sms " + std::to_string(num_sms));
    expect_play("low_latency", named.scenario, on_cuda({.num_sms = num_sms, .row_flags = true}, split_halves));
    if (HasFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(All, CudaFlaggedRoundTrip,
                         ::testing::Combine(::testing::ValuesIn(flagged_scenarios()), ::testing::Bool()),
                         [](const auto& param_info) {
                           return std::get<0>(param_info.param).name +
                                  (std::get<1>(param_info.param) ? "_Halves" : "_Fused");
                         });

// ---- Scales ---------------------------------------------------------------------------------------------------------

using ScaleParam = std::tuple<std::string, OutputLayout, SizingMode, Fp8Blocks>;

class CudaScales : public OnGpu<::testing::TestWithParam<ScaleParam>> {};

/// Every layout with every form of scales; under capacity there is room for every routing, as lines need it.
TEST_P(CudaScales, AreThoseOfTheOracle) {
  const auto& [dispatcher, layout, sizing, wire] = GetParam();
  for (const std::int64_t hidden : {128, 1032, 4096}) {
    Scenario scenario;
    scenario.config = small_config();
    scenario.config.hidden = hidden;
    scenario.config.wire = wire;
    scenario.tokens_per_rank = {20, 40, 0, 7};
    const std::int64_t rows = layout == OutputLayout::kExpertBlocks  ? 161
                              : layout == OutputLayout::kExpertMajor ? 999
                                                                     : 163;
    set_layout(scenario.config, layout, sizing, rows, layout == OutputLayout::kExpertMajor ? 16 : 1);
    SCOPED_TRACE("hidden " + std::to_string(hidden));
    for (const bool split_halves : {false, true}) {
      expect_play(dispatcher, scenario, on_cuda({}, split_halves));
      if (HasFailure()) return;
    }
  }
}

std::vector<Fp8Blocks> scale_forms() {
  std::vector<Fp8Blocks> forms;
  for (const ScaleOrder order : {ScaleOrder::kRows, ScaleOrder::kColumns}) {
    forms.push_back({.order = order});
    forms.push_back({.powers_of_two = true, .order = order});
    forms.push_back({.scales = ScaleFormat::kUe8m0, .order = order});
  }
  return forms;
}

std::string scale_case_name(const ::testing::TestParamInfo<ScaleParam>& param_info) {
  const auto& [dispatcher, layout, sizing, wire] = param_info.param;
  const std::string scales = wire.scales == ScaleFormat::kUe8m0 ? "Ue8m0" : wire.powers_of_two ? "Powers" : "Fp32";
  return dispatcher + "_" + std::string(to_string(layout)) + "_" + std::string(to_string(sizing)) + "_" + scales +
         (wire.order == ScaleOrder::kColumns ? "_Columns" : "_Rows");
}

INSTANTIATE_TEST_SUITE_P(All, CudaScales,
                         ::testing::Combine(::testing::Values("direct", "low_latency"),
                                            ::testing::Values(OutputLayout::kTokenMajor, OutputLayout::kExpertMajor,
                                                              OutputLayout::kExpertBlocks),
                                            ::testing::Values(SizingMode::kExact, SizingMode::kCapacity),
                                            ::testing::ValuesIn(scale_forms())),
                         scale_case_name);

/// The copy engines move rows of exact token_major calls with one buffer only, with scales in rows.
std::vector<NamedScenario> copy_engine_scenarios() {
  std::vector<NamedScenario> chosen;
  for (const NamedScenario& named : named_scenarios()) {
    const DispatcherConfig& config = named.scenario.config;
    const auto* fp8 = std::get_if<Fp8Blocks>(&config.wire);
    if (std::holds_alternative<TokenMajor>(config.layout) && std::holds_alternative<Exact>(config.sizing) &&
        config.num_buffers == 1 && (fp8 == nullptr || fp8->order == ScaleOrder::kRows)) {
      chosen.push_back(named);
    }
  }
  return chosen;
}

INSTANTIATE_TEST_SUITE_P(CopyEngines, CudaRoundTrip,
                         ::testing::Combine(::testing::Values("direct"), ::testing::ValuesIn(copy_engine_scenarios()),
                                            ::testing::Values(CudaMover::kCopyEngines), ::testing::Bool()),
                         mover_case_name);

// ---- Numbers of ranks -----------------------------------------------------------------------------------------------

using RanksParam = std::tuple<std::string, NamedScenario, int>;

class CudaVirtualRanks : public OnGpu<::testing::TestWithParam<RanksParam>> {};

TEST_P(CudaVirtualRanks, OnOneGpu) {
  const auto& [dispatcher, named, num_ranks] = GetParam();
  const Scenario scenario = with_ranks(named.scenario, num_ranks);
  if (const std::string reason = cannot_play(dispatcher, scenario); !reason.empty()) GTEST_SKIP() << reason;
  expect_play(dispatcher, scenario, on_cuda({.device = 0}));
}

std::string ranks_case_name(const ::testing::TestParamInfo<RanksParam>& param_info) {
  const auto& [dispatcher, named, num_ranks] = param_info.param;
  return dispatcher + "_" + named.name + "_" + std::to_string(num_ranks);
}

INSTANTIATE_TEST_SUITE_P(All, CudaVirtualRanks,
                         ::testing::Combine(::testing::ValuesIn(one_gpu_dispatcher_names()),
                                            ::testing::ValuesIn(named_scenarios()), ::testing::Values(1, 2, 4, 8, 16)),
                         ranks_case_name);

// ---- A GPU of its own for every rank
// ----------------------------------------------------------------------------------

using TwoGpusParam = std::tuple<std::string, NamedScenario>;

class CudaTwoGpus : public ::testing::TestWithParam<TwoGpusParam> {
 protected:
  void SetUp() override {
    const std::string& dispatcher = std::get<0>(GetParam());
    if (const std::string reason = missing_gpus(2); !reason.empty()) GTEST_SKIP() << reason;
    if (const auto reason = missing_from_build(dispatcher); !reason.empty()) GTEST_SKIP() << reason;
  }
};

TEST_P(CudaTwoGpus, OverThreads) {
  const auto& [dispatcher, named] = GetParam();
  const Scenario scenario = with_ranks(named.scenario, 2);
  if (const std::string reason = cannot_play(dispatcher, scenario); !reason.empty()) GTEST_SKIP() << reason;
  for (const bool split_halves : {false, true}) {
    SCOPED_TRACE(split_halves ? "halves" : "fused");
    expect_play(dispatcher, scenario, on_cuda({}, split_halves));
    if (HasFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(All, CudaTwoGpus,
                         ::testing::Combine(::testing::ValuesIn(dispatcher_names(Device::kCuda)),
                                            ::testing::ValuesIn(named_scenarios())),
                         [](const auto& param_info) {
                           return std::get<0>(param_info.param) + "_" + std::get<1>(param_info.param).name;
                         });

}  // namespace
}  // namespace epistle::testing
