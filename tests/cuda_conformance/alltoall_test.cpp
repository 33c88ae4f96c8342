// What only the dispatcher alltoall refuses, and how its ranks hear of a refusal.
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "epistle/cuda.hpp"
#include "epistle/group.hpp"

#include "core/settings.hpp"
#include "support/bad_rank.hpp"
#include "support/cuda_devices.hpp"
#include "support/cuda_play.hpp"
#include "support/environment.hpp"
#include "support/round_trip.hpp"

namespace epistle::testing {
namespace {

Scenario scenario_of(int num_ranks) {
  Scenario scenario = small_scenario();
  scenario.tokens_per_rank.assign(static_cast<std::size_t>(num_ranks), 9);
  return scenario;
}

class CudaAllToAll : public ::testing::Test {
 protected:
  /// Skips where there is too little for the test.
  void need(int num_gpus) {
    if (const std::string reason = missing_gpus(num_gpus); !reason.empty()) GTEST_SKIP() << reason;
    if (const auto reason = missing_from_build("alltoall"); !reason.empty()) GTEST_SKIP() << reason;
  }

  static std::vector<Outcome> create_on(int num_ranks) {
    std::vector<Outcome> outcomes(static_cast<std::size_t>(num_ranks));
    run_thread_ranks(num_ranks,
                     [&](Group& group) {
                       outcomes[static_cast<std::size_t>(group.rank())] = outcome_of([&] {
                         (void)Dispatcher(group, "alltoall", scenario_of(num_ranks).config, CudaOptions{.device = 0});
                       });
                     },
                     {.timeout = kCudaTimeout});
    return outcomes;
  }
};

TEST_F(CudaAllToAll, RanksThatShareAGpuAreNamed) {
  need(1);
  if (IsSkipped()) return;
  for (const Outcome& outcome : create_on(3)) {
    ASSERT_TRUE(outcome.has_value());
    EXPECT_EQ(outcome->code(), ErrorCode::kUnsupported) << outcome->what();
    EXPECT_NE(std::string(outcome->what()).find("ranks 0, 1, 2 have the same GPU"), std::string::npos)
        << outcome->what();
  }
}

TEST_F(CudaAllToAll, MissingLibraryIsUnsupported) {
  need(1);
  if (IsSkipped()) return;
  test::ScopedEnvironment environment;
  environment.set("EPISTLE_NCCL_LIBRARY", "/nonexistent/libnccl.so.2");
  reload_settings_for_testing();
  const std::vector<Outcome> outcomes = create_on(1);
  environment.unset("EPISTLE_NCCL_LIBRARY");
  reload_settings_for_testing();
  ASSERT_TRUE(outcomes[0].has_value());
  EXPECT_EQ(outcomes[0]->code(), ErrorCode::kUnsupported) << outcomes[0]->what();
}

TEST_F(CudaAllToAll, RefusedPayloadIsToldToThePeers) {
  need(2);
  if (IsSkipped()) return;
  const auto outcomes = call_on_all_ranks(
      "alltoall", scenario_of(2),
      [](const Caller& caller) {
        DispatchRequest request = caller.inputs.dispatch(caller.prepare());
        if (caller.rank == kBadRank) --request.tokens.num_rows;
        (void)caller.subject.dispatch(request);
      },
      on_cuda());
  expect_rejected(outcomes, ErrorCode::kInvalidArgument);
}

TEST_F(CudaAllToAll, OtherCallsAreNamed) {
  need(2);
  if (IsSkipped()) return;
  const auto outcomes = call_on_all_ranks(
      "alltoall", scenario_of(2),
      [](const Caller& caller) {
        const Handle handle = caller.prepare();
        if (caller.rank == kBadRank) {
          (void)caller.prepare();
          return;
        }
        (void)caller.subject.dispatch(caller.inputs.dispatch(handle));
      },
      on_cuda());
  for (std::size_t rank = 0; rank < outcomes.by_rank.size(); ++rank) {
    ASSERT_TRUE(outcomes.by_rank[rank].has_value());
    EXPECT_EQ(outcomes.by_rank[rank]->code(), ErrorCode::kShapeMismatch) << outcomes.by_rank[rank]->what();
    EXPECT_FALSE(outcomes.afterwards[rank].has_value()) << *outcomes.afterwards[rank];
  }
}

}  // namespace
}  // namespace epistle::testing
