// One process per GPU. A program of its own, because CUDA does not survive a fork: nothing here may start it in the
// process that forks.
#include <iostream>
#include <string>
#include <tuple>

#include <gtest/gtest.h>

#include "epistle/cuda.hpp"

#include "support/cuda_devices.hpp"
#include "support/cuda_play.hpp"
#include "support/named_scenarios.hpp"
#include "support/process_ranks.hpp"

namespace epistle::testing {
namespace {

constexpr int kNumRanks = 2;

using ProcessParam = std::tuple<std::string, NamedScenario, bool>;

class CudaProcesses : public ::testing::TestWithParam<ProcessParam> {
 protected:
  void SetUp() override {
    const std::string& dispatcher = std::get<0>(GetParam());
    if (const std::string reason = missing_gpu_nodes(kNumRanks); !reason.empty()) GTEST_SKIP() << reason;
    // The registry is a list that needs no GPU.
    if (!has_cuda_dispatcher(dispatcher)) GTEST_SKIP() << "this build has no " << dispatcher << " on CUDA";
  }
};

TEST_P(CudaProcesses, MatchTheOracle) {
  const auto& [dispatcher, named, split_halves] = GetParam();
  const Scenario scenario = with_ranks(named.scenario, kNumRanks);
  const DispatcherFactory create = staged_factory({.split_halves = split_halves});
  const auto exits = run_process_ranks(kNumRanks,
                                       [&, &name = dispatcher](Group& group) {
                                         const Mismatch mismatch = play_rank(group, name, scenario, create);
                                         if (mismatch)
                                           std::cerr << "rank " << group.rank() << ": " << *mismatch << std::endl;
                                         return mismatch ? 1 : 0;
                                       },
                                       {.timeout = kCudaTimeout});
  for (std::size_t rank = 0; rank < exits.size(); ++rank) EXPECT_EQ(exits[rank], 0) << "exit of rank " << rank;
}

INSTANTIATE_TEST_SUITE_P(All, CudaProcesses,
                         ::testing::Combine(::testing::Values("direct", "alltoall"),
                                            ::testing::ValuesIn(named_scenarios()), ::testing::Bool()),
                         [](const auto& param_info) {
                           return std::get<0>(param_info.param) + "_" + std::get<1>(param_info.param).name +
                                  (std::get<2>(param_info.param) ? "_Halves" : "_Fused");
                         });

}  // namespace
}  // namespace epistle::testing
