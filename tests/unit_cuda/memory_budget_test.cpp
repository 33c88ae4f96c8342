#include "gpu/heap/memory_budget.hpp"

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "dispatch/cuda/engine/buffer_carver.hpp"

namespace epistle::cuda {
namespace {

constexpr std::int64_t kGibi = std::int64_t{1} << 30;
constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();

DeviceClaim claim(char gpu, std::int64_t needed_bytes, std::int64_t available_bytes = 8 * kGibi) {
  return {.uuid = {gpu}, .device = gpu, .needed_bytes = needed_bytes, .available_bytes = available_bytes};
}

TEST(MemoryBudget, WhatFitsIsNoShortage) {
  EXPECT_FALSE(find_shortage(std::vector{claim(0, 4 * kGibi), claim(1, 7 * kGibi)}, 0, "rows").has_value());
  EXPECT_FALSE(find_shortage(std::vector{claim(0, 8 * kGibi - kReservedDeviceBytes)}, 0, "rows").has_value());
}

TEST(MemoryBudget, NothingNeededFitsOnAFullGpu) {
  EXPECT_FALSE(find_shortage(std::vector{claim(0, 0, 0)}, 0, "rows").has_value());
}

TEST(MemoryBudget, SaysTheSameOnAllRanks) {
  const std::vector claims = {claim(0, kGibi), claim(1, 8 * kGibi)};
  for (const int rank : {0, 1}) {
    const auto error = find_shortage(claims, rank, "rows");
    ASSERT_TRUE(error.has_value());
    EXPECT_EQ(error->code(), ErrorCode::kOutOfMemory);
    EXPECT_EQ(error->context().rank, rank);
    EXPECT_EQ(error->context().peer_rank, 1);
    EXPECT_NE(std::string(error->what()).find("GPU 1 of rank 1 has 8589934592 bytes free"), std::string::npos)
        << error->what();
  }
}

TEST(MemoryBudget, RanksOnOneGpuCountTogether) {
  EXPECT_FALSE(find_shortage(std::vector{claim(0, 3 * kGibi), claim(1, 5 * kGibi)}, 0, "rows").has_value());
  const auto error = find_shortage(std::vector{claim(0, 3 * kGibi), claim(0, 5 * kGibi)}, 0, "rows");
  ASSERT_TRUE(error.has_value());
  EXPECT_NE(std::string(error->what()).find("by its 2 ranks 8589934592"), std::string::npos) << error->what();
}

TEST(MemoryBudget, SumsDoNotWrap) {
  const auto error = find_shortage(std::vector{claim(0, kMost), claim(0, kMost)}, 0, "rows");
  ASSERT_TRUE(error.has_value());
  EXPECT_NE(std::string(error->what()).find("2^63 or more"), std::string::npos) << error->what();
}

TEST(MemoryBudget, HostMemoryIsAskedFor) {
  EXPECT_NO_THROW(check_host_memory(1, "a test"));
  try {
    check_host_memory(kMost, "a test");
    ADD_FAILURE() << "more memory than there can be was found";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kOutOfMemory) << error.what();
  }
}

TEST(MemoryBudget, PartsThatAreTooLargeStayTooLarge) {
  BufferCarver carver(nullptr);
  double* part = nullptr;
  carver.take(part, kMost / 4);
  EXPECT_EQ(carver.num_bytes(), kMost);
  carver.take(part, 1);
  EXPECT_EQ(carver.num_bytes(), kMost);
  BufferCarver sum(nullptr);
  for (int i = 0; i < 20; ++i) sum.take(part, kMost / 8 / 16);
  EXPECT_EQ(sum.num_bytes(), kMost);
}

}  // namespace
}  // namespace epistle::cuda
