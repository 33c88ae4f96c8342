// Dispatches with ids that no combine follows, more than there are handles: a dispatcher whose dispatch is one kernel
// with its routing has to ask the device whether they are done.
#include <cstdint>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "support/bad_rank.hpp"
#include "support/cuda_devices.hpp"
#include "support/cuda_play.hpp"
#include "support/dispatcher_names.hpp"
#include "support/round_trip.hpp"

namespace epistle::testing {
namespace {

constexpr std::int32_t kHandles = 8;
constexpr int kDispatches = 5 * kHandles;

/// Every routing fits, so that nothing has to be waited for.
Scenario uncombined_scenario() {
  Scenario scenario = small_scenario();
  const auto num_ranks = static_cast<std::int64_t>(scenario.tokens_per_rank.size());
  scenario.config.layout = ExpertBlocks{.rows_per_expert = scenario.config.max_tokens * num_ranks};
  scenario.config.sizing = Capacity{};
  scenario.config.max_handles = kHandles;
  return scenario;
}

class CudaUncombined : public OnGpu<::testing::TestWithParam<std::string>> {};

TEST_P(CudaUncombined, HandlesAreUsedAgain) {
  const auto outcomes = call_on_all_ranks(
      GetParam(), uncombined_scenario(),
      [](const Caller& caller) {
        for (int call = 0; call < kDispatches; ++call) {
          (void)caller.subject.dispatch(caller.inputs.prepare_and_dispatch());
        }
      },
      on_cuda());
  for (std::size_t rank = 0; rank < outcomes.by_rank.size(); ++rank) {
    EXPECT_FALSE(outcomes.by_rank[rank].has_value()) << "rank " << rank << ": " << outcomes.by_rank[rank]->what();
    EXPECT_FALSE(outcomes.afterwards[rank].has_value()) << "rank " << rank << ": " << *outcomes.afterwards[rank];
  }
}

TEST_P(CudaUncombined, ThoseThatAreHeldKeepTheirCounts) {
  const auto outcomes = call_on_all_ranks(
      GetParam(), uncombined_scenario(),
      [](const Caller& caller) {
        std::vector<Handle> held;
        for (int call = 0; call < kDispatches; ++call) {
          const Received received = caller.subject.dispatch(caller.inputs.prepare_and_dispatch());
          if (held.size() < kHandles / 2) held.push_back(received.handle());
        }
        for (const Handle& handle : held) EXPECT_EQ(handle.wait_stats().num_tokens, caller.num_tokens());
      },
      on_cuda());
  for (std::size_t rank = 0; rank < outcomes.by_rank.size(); ++rank) {
    EXPECT_FALSE(outcomes.by_rank[rank].has_value()) << "rank " << rank << ": " << outcomes.by_rank[rank]->what();
    EXPECT_FALSE(outcomes.afterwards[rank].has_value()) << "rank " << rank << ": " << *outcomes.afterwards[rank];
  }
}

/// What the device has found in one of them is told, however many come behind it.
TEST_P(CudaUncombined, ABadIdIsTold) {
  const Round round(uncombined_scenario(), 0);
  std::vector<std::int32_t> ids = round.table(kBadRank).expert_ids;
  ids[1] = ids[0];
  const auto outcomes = call_on_all_ranks(
      GetParam(), uncombined_scenario(),
      [&](const Caller& caller) {
        for (int call = 0; call < kDispatches; ++call) {
          DispatchRequest request = caller.inputs.prepare_and_dispatch();
          const bool is_bad = caller.rank == kBadRank && call == kHandles + 3;
          const RoutingTable& table = round.table(kBadRank);
          if (is_bad) request.expert_ids = {ids.data(), table.num_tokens, table.top_k};
          (void)caller.subject.dispatch(request);
        }
      },
      on_cuda());
  expect_rejected(outcomes, ErrorCode::kInvalidArgument);
}

INSTANTIATE_TEST_SUITE_P(All, CudaUncombined, ::testing::ValuesIn(one_gpu_dispatcher_names()),
                         [](const auto& param_info) { return param_info.param; });

}  // namespace
}  // namespace epistle::testing
