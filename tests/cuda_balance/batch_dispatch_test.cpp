// Quotas of a batch in dispatch: rows go to the slots that the host's tables name, and ranks come to be alike.
#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "epistle/dispatcher.hpp"
#include "epistle/error.hpp"
#include "epistle/group.hpp"

#include "dispatch/call/placed_experts.hpp"
#include "dispatch/call/resolved_config.hpp"
#include "support/cuda_devices.hpp"
#include "support/cuda_play.hpp"
#include "support/device_arena.hpp"

namespace epistle::testing {
namespace {

constexpr int kBatchRanks = 4;
constexpr std::int64_t kBatchTokens = 128;
constexpr std::int32_t kBatchTopK = 2;
constexpr std::uint64_t kBatchSeed = 99;

/// Expert 0 is on all ranks, all others on two.
Placement two_replicas_each() { return {8, {{0, 1, 2, 3}, {0, 4, 5, 1}, {0, 6, 7, 2}, {0, 3, 4, 5, 6, 7}}, 1}; }

DispatcherConfig batch_config() {
  return {.hidden = 64,
          .num_experts = 8,
          .top_k = kBatchTopK,
          .max_tokens = kBatchTokens,
          .layout = ExpertBlocks{.rows_per_expert = kBatchRanks * kBatchTokens},
          .sizing = Capacity{},
          .placement = two_replicas_each(),
          .slots_per_rank = 6};
}

/// Half of the assignments are of expert 0, and a quarter of expert 1.
std::vector<std::int32_t> ids_of(int rank) {
  std::vector<std::int32_t> ids;
  for (std::int32_t token = 0; token < kBatchTokens; ++token) {
    ids.push_back(0);
    ids.push_back(token % 2 == 0 ? 1 : 2 + (token / 2 + rank) % 6);
  }
  return ids;
}

std::vector<std::int64_t> tokens_of_all() {
  std::vector<std::int64_t> tokens(8, 0);
  for (int rank = 0; rank < kBatchRanks; ++rank) {
    for (const std::int32_t id : ids_of(rank)) ++tokens[static_cast<std::size_t>(id)];
  }
  return tokens;
}

/// By the tables of the host: rows of each of a rank's slots.
std::vector<std::int32_t> expected_counts(int rank) {
  const ResolvedConfig config = resolve_config(batch_config(), kBatchRanks);
  const std::vector<std::int64_t> tokens = tokens_of_all();
  std::vector<std::int32_t> counts(two_replicas_each().experts_of(rank).size(), 0);
  for (int source = 0; source < kBatchRanks; ++source) {
    PlacedExperts placed(two_replicas_each(), config, kBatchRanks, source);
    placed.share_batch({.expert_tokens = tokens.data()});
    const SlotChooser chooser = placed.chooser(kBatchSeed);
    const std::vector<std::int32_t> ids = ids_of(source);
    for (std::size_t at = 0; at < ids.size(); ++at) {
      const std::int32_t slot = chooser.slot_of(ids[at], static_cast<std::int64_t>(at) / kBatchTopK);
      if (slot / config.slots_per_rank == rank) ++counts[static_cast<std::size_t>(slot % config.slots_per_rank)];
    }
  }
  return counts;
}

class CudaBatchDispatch : public OnGpu<::testing::TestWithParam<std::string>> {};

TEST_P(CudaBatchDispatch, RowsGoWhereTheTablesOfTheHostSendThem) {
  std::vector<std::vector<std::int32_t>> counts(kBatchRanks);
  std::vector<std::vector<std::int64_t>> quotas(kBatchRanks);
  run_thread_ranks(
      kBatchRanks,
      [&](Group& group) {
        const int rank = group.rank();
        DeviceArena arena(0, std::int64_t{1} << 22);
        const std::vector<std::int32_t> ids = ids_of(rank);
        const std::vector<std::int64_t> tokens = tokens_of_all();
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
    EXPECT_EQ(counts[static_cast<std::size_t>(rank)], expected_counts(rank));
    EXPECT_EQ(quotas[static_cast<std::size_t>(rank)], std::vector<std::int64_t>(kBatchRanks, kMean));
  }
}

INSTANTIATE_TEST_SUITE_P(All, CudaBatchDispatch, ::testing::Values("direct", "low_latency"),
                         [](const auto& param_info) { return param_info.param; });

}  // namespace
}  // namespace epistle::testing
