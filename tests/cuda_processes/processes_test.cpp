// One process per GPU. A program of its own, because CUDA does not survive a fork: nothing here may start it in the
// process that forks.
#include <cstdlib>
#include <iostream>
#include <string>
#include <tuple>

#include <gtest/gtest.h>

#include "epistle/cuda.hpp"

#include "support/cuda_devices.hpp"
#include "support/cuda_play.hpp"
#include "support/dispatcher_names.hpp"
#include "support/named_scenarios.hpp"
#include "support/process_ranks.hpp"

namespace epistle::testing {
namespace {

// As many as EPISTLE_TEST_RANKS says (scripts/gpu-check --ranks), each with a GPU.
int num_ranks_asked() {
  const char* const asked = std::getenv("EPISTLE_TEST_RANKS");
  return asked == nullptr ? 2 : std::stoi(asked);
}
const int kNumRanks = num_ranks_asked();

using ProcessParam = std::tuple<std::string, bool>;

class CudaProcesses : public ::testing::TestWithParam<ProcessParam> {
 protected:
  void SetUp() override {
    const std::string& dispatcher = std::get<0>(GetParam());
    if (const std::string reason = missing_gpu_nodes(kNumRanks); !reason.empty()) GTEST_SKIP() << reason;
    if (const auto reason = missing_from_build(dispatcher); !reason.empty()) GTEST_SKIP() << reason;
  }
};

// All scenarios in one pair of processes: starting CUDA takes longer than playing them.
TEST_P(CudaProcesses, MatchTheOracle) {
  const auto& [dispatcher, split_halves] = GetParam();
  const SubjectOptions options = on_cuda({}, split_halves);
  const auto play_all = [&, &name = dispatcher](Group& group) {
    for (const NamedScenario& named : named_scenarios()) {
      const Scenario scenario = with_ranks(named.scenario, kNumRanks);
      if (!cannot_play(name, scenario).empty()) continue;
      const Mismatch mismatch = play_rank(group, name, scenario, options);
      if (!mismatch) continue;
      std::cerr << named.name << ", rank " << group.rank() << ": " << *mismatch << std::endl;
      return 1;
    }
    return 0;
  };
  const auto exits = run_process_ranks(kNumRanks, play_all, {.timeout = kCudaTimeout});
  for (std::size_t rank = 0; rank < exits.size(); ++rank) EXPECT_EQ(exits[rank], 0) << "exit of rank " << rank;
}

INSTANTIATE_TEST_SUITE_P(All, CudaProcesses,
                         ::testing::Combine(::testing::ValuesIn(dispatcher_names(Device::kCuda)), ::testing::Bool()),
                         [](const auto& param_info) {
                           return std::get<0>(param_info.param) +
                                  (std::get<1>(param_info.param) ? "_Halves" : "_Fused");
                         });

}  // namespace
}  // namespace epistle::testing
