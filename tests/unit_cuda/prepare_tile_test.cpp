// How many tokens one pass of prepare places: the shared memory of the device comes in as a value.
#include <array>
#include <cstdint>
#include <string>

#include <gtest/gtest.h>

#include "dispatch/cuda/device/device_types.hpp"
#include "dispatch/cuda/engine/launch.hpp"

namespace epistle::cuda {
namespace {

constexpr std::int64_t kKib = 1024;
// What one thread block may have at most: sm_120, sm_80, sm_90 and sm_100 (CUDA C++ Programming Guide, "Technical
// Specifications per Compute Capability").
constexpr std::int64_t kSharedBytesOfSm120 = 99 * kKib;
constexpr std::int64_t kSharedBytesOfSm80 = 163 * kKib;
constexpr std::int64_t kSharedBytesOfSm90 = 227 * kKib;
constexpr std::array kDevices = {kSharedBytesOfSm120, kSharedBytesOfSm80, kSharedBytesOfSm90};

std::string text_of(const PrepareShape& shape) {
  return std::to_string(shape.num_ranks) + " ranks, " + std::to_string(shape.num_experts) + " experts, top-" +
         std::to_string(shape.top_k);
}

template <typename Visit>
void for_each_shape(const Visit& visit) {
  for (const int num_ranks : {1, 2, 3, 8, 16, 37, kMaxRanks}) {
    for (const int num_experts : {1, 8, 37, 128, 256, 512, 1000, 4096}) {
      for (const int top_k : {1, 2, 8, 22, 64}) {
        if (top_k > num_experts) continue;
        visit(PrepareShape{.num_ranks = num_ranks, .num_experts = num_experts, .top_k = top_k});
      }
    }
  }
}

TEST(PrepareTile, FitsTheSharedMemory) {
  for_each_shape([](const PrepareShape& shape) {
    for (const std::int64_t max_shared_bytes : kDevices) {
      const PrepareTile tile = choose_prepare_tile(shape, max_shared_bytes);
      if (tile.num_tokens == 0) continue;
      EXPECT_LE(tile.shared_bytes, max_shared_bytes) << text_of(shape);
      EXPECT_GT(tile.shared_bytes, 0) << text_of(shape);
      EXPECT_LE(tile.num_tokens, kMaxTileTokens) << text_of(shape);
      EXPECT_EQ(tile.num_tokens % 32, 0) << text_of(shape);  // one bit per token, in words of 32
    }
  });
}

TEST(PrepareTile, LargestComesFirst) {
  for_each_shape([](const PrepareShape& shape) {
    const PrepareTile most = choose_prepare_tile(shape, std::int64_t{1} << 40);
    ASSERT_EQ(most.num_tokens, kMaxTileTokens) << text_of(shape);
    // Exactly enough is enough; one byte less is not.
    EXPECT_EQ(choose_prepare_tile(shape, most.shared_bytes).num_tokens, kMaxTileTokens) << text_of(shape);
    EXPECT_LT(choose_prepare_tile(shape, most.shared_bytes - 1).num_tokens, kMaxTileTokens) << text_of(shape);
  });
}

TEST(PrepareTile, NothingFitsIsZeroAndTellsWhatWouldBeNeeded) {
  for_each_shape([](const PrepareShape& shape) {
    const PrepareTile none = choose_prepare_tile(shape, 0);
    ASSERT_EQ(none.num_tokens, 0) << text_of(shape);
    ASSERT_GT(none.shared_bytes, 0) << text_of(shape);
    const PrepareTile smallest = choose_prepare_tile(shape, none.shared_bytes);
    EXPECT_GT(smallest.num_tokens, 0) << text_of(shape);
    EXPECT_EQ(smallest.shared_bytes, none.shared_bytes) << text_of(shape);
    EXPECT_EQ(choose_prepare_tile(shape, none.shared_bytes - 1).num_tokens, 0) << text_of(shape);
  });
}

TEST(PrepareTile, MoreSharedMemoryNeverGivesLess) {
  for_each_shape([](const PrepareShape& shape) {
    int last = 0;
    for (std::int64_t bytes = 0; bytes <= 512 * kKib; bytes += 3 * kKib) {
      const int num_tokens = choose_prepare_tile(shape, bytes).num_tokens;
      ASSERT_GE(num_tokens, last) << text_of(shape) << ", " << bytes << " bytes";
      last = num_tokens;
    }
  });
}

TEST(PrepareTile, LargerShapesNeverNeedLess) {
  for_each_shape([](const PrepareShape& shape) {
    const auto smallest_bytes = [](const PrepareShape& of) { return choose_prepare_tile(of, 0).shared_bytes; };
    for (const PrepareShape& larger : {PrepareShape{shape.num_ranks + 1, shape.num_experts, shape.top_k},
                                       PrepareShape{shape.num_ranks, shape.num_experts + 1, shape.top_k},
                                       PrepareShape{shape.num_ranks, shape.num_experts, shape.top_k + 1}}) {
      EXPECT_GE(smallest_bytes(larger), smallest_bytes(shape)) << text_of(shape);
    }
  });
}

TEST(PrepareTile, KnownModelsFitEveryGpu) {
  // DeepSeek-V3 and V3.2, Qwen3, Kimi K2 and GPT-OSS in one scale-up domain; top-22 of 512 as Nemotron 3.
  for (const auto& [num_experts, top_k] : {std::array{256, 8}, {128, 8}, {384, 8}, {128, 4}, {512, 10}, {512, 22}}) {
    for (const int num_ranks : {1, 2, 8, 16}) {
      const PrepareShape shape{.num_ranks = num_ranks, .num_experts = num_experts, .top_k = top_k};
      EXPECT_GT(choose_prepare_tile(shape, kSharedBytesOfSm120 - kKib).num_tokens, 0) << text_of(shape);
    }
  }
}

TEST(PrepareTile, TheLargestShapeFitsAnSm90) {
  const PrepareShape shape{.num_ranks = kMaxRanks, .num_experts = 4096, .top_k = 64};
  EXPECT_GT(choose_prepare_tile(shape, kSharedBytesOfSm90 - kKib).num_tokens, 0);
}

}  // namespace
}  // namespace epistle::cuda
