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

/// The copy engines move rows of exact token_major calls with one buffer only.
std::vector<NamedScenario> copy_engine_scenarios() {
  std::vector<NamedScenario> chosen;
  for (const NamedScenario& named : named_scenarios()) {
    const DispatcherConfig& config = named.scenario.config;
    if (std::holds_alternative<TokenMajor>(config.layout) && std::holds_alternative<Exact>(config.sizing) &&
        config.num_buffers == 1) {
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
