// Weights that move between virtual ranks of one GPU while these dispatch.
#include "epistle/migration.hpp"

#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "epistle/dispatcher.hpp"
#include "epistle/error.hpp"
#include "epistle/group.hpp"

#include "cuda_balance/gpu_weights_for_tests.hpp"
#include "support/cuda_devices.hpp"
#include "support/cuda_play.hpp"
#include "unit/balance/loads_for_tests.hpp"

namespace epistle::testing {
namespace {

constexpr int kMovingRanks = 3;
constexpr std::int32_t kMovingExperts = 8;
constexpr std::int32_t kMovingTopK = 2;
constexpr std::int64_t kMovingTokens = 32;
constexpr std::int32_t kMovingHidden = 64;
constexpr std::int32_t kMovingSlots = 8;  // room of a rank in any placement on the way
constexpr int kMaxSteps = 5000;

std::vector<std::vector<std::int32_t>> slots_of(std::uint64_t seed) {
  return test::by_rank(test::random_placement(seed, kMovingExperts, balance::Cluster::even(kMovingRanks, 12)));
}

WeightStoreConfig moving_config() {
  WeightStoreConfig config;
  config.num_experts = kMovingExperts;
  config.expert_bytes = 150'001;
  config.slot_experts = slots_of(1);
  config.chunk_bytes = 20'000;
  return config;
}

std::int32_t id_of(int rank, std::int64_t token, int position, int step) {
  const auto first = static_cast<std::int32_t>((token * 3 + rank + step) % kMovingExperts);
  return position == 0 ? first : (first + 1 + static_cast<std::int32_t>(token % 3)) % kMovingExperts;
}

/// One rank that dispatches by the placement that its store has in force.
class MovingRank {
 public:
  explicit MovingRank(Group& group)
      : group_(group),
        arena_(0, std::int64_t{1} << 24),
        store_(group, moving_config(), CudaOptions{.device = 0}),
        moe_(group, "direct",
             {.hidden = kMovingHidden,
              .num_experts = kMovingExperts,
              .top_k = kMovingTopK,
              .max_tokens = kMovingTokens,
              .layout = ExpertBlocks{.rows_per_expert = kMovingRanks * kMovingTokens},
              .sizing = Capacity{},
              .placement = store_.placement(),
              .slots_per_rank = kMovingSlots},
             CudaOptions{.device = 0}) {
    ids_ = arena_.take(kMovingTokens * kMovingTopK * 4);
    rows_ = arena_.take(kMovingTokens * kMovingHidden * 2);
    std::vector<std::int32_t> rows(static_cast<std::size_t>(kMovingTokens * kMovingHidden / 2));
    for (std::int64_t token = 0; token < kMovingTokens; ++token) {
      rows[static_cast<std::size_t>(token * kMovingHidden / 2)] =
          static_cast<std::int32_t>(group.rank() * kMovingTokens + token);
    }
    arena_.upload(rows_, rows.data(), kMovingTokens * kMovingHidden * 2);
    fill_gpu_weights(store_, group.rank(), arena_);
    group.barrier();
  }
  ~MovingRank() {
    arena_.synchronize();
    try {
      group_.barrier();
    } catch (const Error&) {
      // The group is broken: nobody will call anything any more.
    }
  }
  MovingRank(const MovingRank&) = delete;
  MovingRank& operator=(const MovingRank&) = delete;

  [[nodiscard]] WeightStore& store() noexcept { return store_; }
  /// Received so far.
  [[nodiscard]] std::int64_t num_rows() const noexcept { return num_rows_; }

  /// Takes the next placement where it is time to, and dispatches. True where it was.
  bool step(int step_idx) {
    const bool switches = store_.advance(arena_.stream());
    if (switches) {
      moe_.set_placement(store_.placement(), arena_.stream());
      const auto wrong = find_wrong_gpu_weights(store_, group_.rank(), arena_);
      EXPECT_FALSE(wrong) << *wrong;
    }
    std::vector<std::int32_t> ids;
    for (std::int64_t token = 0; token < kMovingTokens; ++token) {
      for (int position = 0; position < kMovingTopK; ++position) {
        ids.push_back(id_of(group_.rank(), token, position, step_idx));
      }
    }
    arena_.upload(ids_, ids.data(), static_cast<std::int64_t>(ids.size() * sizeof(ids[0])));
    const Received received =
        moe_.dispatch({.expert_ids = {reinterpret_cast<const std::int32_t*>(ids_), kMovingTokens, kMovingTopK},
                       .step_seed = static_cast<std::uint64_t>(step_idx),
                       .tokens = {.data = rows_, .num_rows = kMovingTokens, .hidden = kMovingHidden}},
                      arena_.stream());
    moe_.wait();
    check_rows(received, step_idx);
    return switches;
  }

 private:
  /// Every row is in a slot of an expert that its token has named.
  void check_rows(const Received& received, int step_idx) {
    const auto experts = store_.placement().experts_of(group_.rank());
    ASSERT_EQ(static_cast<std::size_t>(received.description().num_local_experts), experts.size());
    const std::vector<std::int32_t> counts =
        arena_.read(received.expert_counts(), static_cast<std::int64_t>(experts.size()));
    const auto* const rows = static_cast<const std::byte*>(received.rows().data);
    for (std::size_t slot = 0; slot < experts.size(); ++slot) {
      for (std::int32_t idx = 0; idx < counts[slot]; ++idx) {
        const std::int64_t row = static_cast<std::int64_t>(slot) * kMovingRanks * kMovingTokens + idx;
        const std::int32_t source =
            arena_.read(reinterpret_cast<const std::int32_t*>(rows + row * kMovingHidden * 2), 1).front();
        bool is_named = false;
        for (int position = 0; position < kMovingTopK; ++position) {
          const std::int32_t id =
              id_of(source / static_cast<int>(kMovingTokens), source % kMovingTokens, position, step_idx);
          is_named = is_named || id == experts[slot];
        }
        ASSERT_TRUE(is_named) << "step " << step_idx << ", slot " << slot << ": token " << source;
        ++num_rows_;
      }
    }
  }

  Group& group_;
  DeviceArena arena_;
  WeightStore store_;
  Dispatcher moe_;
  std::byte* ids_ = nullptr;
  std::byte* rows_ = nullptr;
  std::int64_t num_rows_ = 0;
};

class CudaMigration : public OnGpu<> {};

TEST_F(CudaMigration, DispatchIsRightAllTheTimeAndAllRanksSwitchInOneStep) {
  std::vector<std::vector<int>> changes(kMovingRanks);
  std::vector<std::int64_t> num_rows(kMovingRanks, 0);
  std::vector<int> num_steps(kMovingRanks, 0);
  run_thread_ranks(kMovingRanks,
                   [&](Group& group) {
                     const auto own = static_cast<std::size_t>(group.rank());
                     MovingRank rank(group);
                     int step = 0;
                     for (std::uint64_t seed = 2; seed < 8; ++seed) {
                       ASSERT_TRUE(rank.store().begin(slots_of(seed)));
                       const int first = step;
                       while (rank.store().status().state == MigrationState::kCopying && step < first + kMaxSteps) {
                         if (rank.step(step)) changes[own].push_back(step);
                         ++step;
                       }
                       const MigrationStatus status = rank.store().status();
                       ASSERT_EQ(status.state, MigrationState::kDone);
                       EXPECT_EQ(status.rounds_done, status.num_rounds);
                       EXPECT_EQ(status.bytes_copied, status.bytes_into_rank);
                     }
                     num_rows[own] = rank.num_rows();
                     num_steps[own] = step;
                   },
                   {.timeout = kCudaTimeout});
  EXPECT_GE(changes[0].size(), 6U);
  std::int64_t total = 0;
  for (std::size_t rank = 0; rank < changes.size(); ++rank) {
    EXPECT_EQ(changes[rank], changes[0]) << "rank " << rank;
    EXPECT_EQ(num_steps[rank], num_steps[0]);
    total += num_rows[rank];
  }
  EXPECT_EQ(total, std::int64_t{num_steps[0]} * kMovingRanks * kMovingTokens * kMovingTopK) << "a row was lost";
}

TEST_F(CudaMigration, CancelledOneLeavesThePlacementThatWasThere) {
  run_thread_ranks(kMovingRanks,
                   [&](Group& group) {
                     MovingRank rank(group);
                     const Placement before = rank.store().placement();
                     ASSERT_TRUE(rank.store().begin(slots_of(5)));
                     if (group.rank() == 1) {
                       EXPECT_TRUE(rank.store().cancel());
                     }
                     for (int step = 0; step < 20; ++step) EXPECT_FALSE(rank.step(step));
                     EXPECT_EQ(rank.store().status().state, MigrationState::kCancelled);
                     EXPECT_EQ(rank.store().placement(), before);
                     // The next one is not held up by it.
                     ASSERT_TRUE(rank.store().begin(slots_of(6)));
                     for (int step = 0; rank.store().status().state == MigrationState::kCopying && step < kMaxSteps;
                          ++step) {
                       (void)rank.step(step);
                     }
                     EXPECT_EQ(rank.store().status().state, MigrationState::kDone);
                   },
                   {.timeout = kCudaTimeout});
}

TEST_F(CudaMigration, HostsThatRunAheadOfEachOtherSwitchInOneStep) {
  std::vector<std::vector<int>> changes(kMovingRanks);
  run_thread_ranks(kMovingRanks, [&](Group& group) {
    WeightStore store(group, moving_config(), CudaOptions{.device = 0});
    std::vector<int>& own = changes[static_cast<std::size_t>(group.rank())];
    int step = 0;
    for (std::uint64_t seed = 2; seed < 12; ++seed) {
      ASSERT_TRUE(store.begin(slots_of(seed)));
      // Nobody waits for anybody here, and each goes at a pace of its own.
      for (; store.status().state == MigrationState::kCopying; ++step) {
        if (store.advance()) own.push_back(step);
        std::this_thread::sleep_for(std::chrono::microseconds(50 * ((group.rank() * 7 + step / 16) % 5)));
      }
      EXPECT_EQ(store.status().state, MigrationState::kDone);
    }
  });
  EXPECT_EQ(changes[1], changes[0]);
  EXPECT_EQ(changes[2], changes[0]);
}

TEST_F(CudaMigration, SlicesBetweenStepsAreOfTheHostOnly) {
  run_thread_ranks(kMovingRanks, [&](Group& group) {
    WeightStoreConfig config = moving_config();
    config.bytes_per_advance = 1000;
    try {
      WeightStore store(group, config, CudaOptions{.device = 0});
      ADD_FAILURE() << "it was taken";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    }
  });
}

}  // namespace
}  // namespace epistle::testing
