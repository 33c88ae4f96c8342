// Random shapes, routings and modes on the CUDA device, against the oracle.
#include <string>
#include <tuple>

#include <gtest/gtest.h>

#include "support/cuda_devices.hpp"
#include "support/cuda_play.hpp"
#include "support/dispatcher_names.hpp"
#include "support/random_scenario.hpp"
#include "support/scenario_text.hpp"

namespace epistle::testing {
namespace {

constexpr int kNumScenarios = 60;
constexpr int kScenariosPerCase = 10;

using RandomParam = std::tuple<std::string, int>;

class CudaRandom : public OnGpu<::testing::TestWithParam<RandomParam>> {};

TEST_P(CudaRandom, MatchesTheOracle) {
  const auto& [dispatcher, part] = GetParam();
  for (int idx = 0; idx < kScenariosPerCase; ++idx) {
    const auto seed = static_cast<std::uint64_t>(part * kScenariosPerCase + idx);
    Scenario scenario = random_scenario(seed);
    // What the dispatcher does not have is left out; all else stays.
    if (!cannot_play(dispatcher, scenario).empty()) {
      scenario.counted = -1.0;
      scenario.config.order = SumOrder::kHierarchical;
    }
    Draw draw(~seed);
    const auto num_sms = static_cast<int>(draw.between(0, 6));
    const bool split_halves = draw.one_in(2);
    SCOPED_TRACE(fmt::format("seed {}, num_sms {}, halves {}: {}", seed, num_sms, split_halves, to_text(scenario)));
    expect_play(dispatcher, scenario, on_cuda({.num_sms = num_sms}, split_halves));
    if (HasFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, CudaRandom,
                         ::testing::Combine(::testing::ValuesIn(one_gpu_dispatcher_names()),
                                            ::testing::Range(0, kNumScenarios / kScenariosPerCase)),
                         [](const auto& param_info) {
                           return std::get<0>(param_info.param) + "_" + std::to_string(std::get<1>(param_info.param));
                         });

}  // namespace
}  // namespace epistle::testing
