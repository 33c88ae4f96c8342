// Quotas of a batch in dispatch: rows go to the slots that the host's tables name, and ranks come to be alike.
#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "epistle/dispatcher.hpp"
#include "epistle/group.hpp"

#include "support/batch_case.hpp"
#include "support/cuda_devices.hpp"
#include "support/cuda_play.hpp"
#include "support/device_arena.hpp"

namespace epistle::testing {
namespace {

class CudaBatchDispatch : public OnGpu<::testing::TestWithParam<std::string>> {};

TEST_P(CudaBatchDispatch, RowsGoWhereTheTablesOfTheHostSendThem) {
  std::vector<std::vector<std::int32_t>> counts(kBatchRanks);
  std::vector<std::vector<std::int64_t>> quotas(kBatchRanks);
  run_thread_ranks(
      kBatchRanks,
      [&](Group& group) {
        const int rank = group.rank();
        DeviceArena arena(0, std::int64_t{1} << 22);
        const std::vector<std::int32_t> ids = batch_ids_of(rank);
        const std::vector<std::int64_t> tokens = batch_tokens_of_all();
        auto* const device_ids = reinterpret_cast<std::int32_t*>(
            arena.copy_in(ids.data(), static_cast<std::int64_t>(ids.size() * sizeof(ids[0]))));
        auto* const device_tokens = reinterpret_cast<std::int64_t*>(
            arena.copy_in(tokens.data(), static_cast<std::int64_t>(tokens.size() * sizeof(tokens[0]))));
        auto* const rank_tokens = reinterpret_cast<std::int64_t*>(arena.take(kBatchRanks * 8));
        std::byte* const rows = arena.take(kBatchTokens * 64 * 2);
        arena.fill(rows, std::byte{0}, kBatchTokens * 64 * 2);
        {
          Dispatcher moe(group, GetParam(), batch_config(), CudaOptions{.device = 0});
          moe.set_batch_quotas({.expert_tokens = device_tokens, .rank_tokens = rank_tokens}, arena.stream());
          const Received received = moe.dispatch({.expert_ids = {device_ids, kBatchTokens, kBatchTopK},
                                                  .step_seed = kBatchSeed,
                                                  .tokens = {.data = rows, .num_rows = kBatchTokens, .hidden = 64}},
                                                 arena.stream());
          moe.wait();
          counts[static_cast<std::size_t>(rank)] =
              arena.read(received.expert_counts(), received.description().num_local_experts);
          quotas[static_cast<std::size_t>(rank)] = arena.read(rank_tokens, kBatchRanks);
          group.barrier();
        }
      },
      {.timeout = kCudaTimeout});
  constexpr std::int64_t kMean = kBatchTokens * kBatchTopK;
  for (int rank = 0; rank < kBatchRanks; ++rank) {
    SCOPED_TRACE(rank);
    EXPECT_EQ(counts[static_cast<std::size_t>(rank)], batch_counts_expected(rank));
    EXPECT_EQ(quotas[static_cast<std::size_t>(rank)], std::vector<std::int64_t>(kBatchRanks, kMean));
  }
}

INSTANTIATE_TEST_SUITE_P(All, CudaBatchDispatch, ::testing::Values("direct", "low_latency"),
                         [](const auto& param_info) { return param_info.param; });

}  // namespace
}  // namespace epistle::testing
