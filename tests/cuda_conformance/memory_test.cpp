// More memory than a GPU has: an error on all ranks, before any of it is taken.
#include <cstdint>
#include <string>
#include <vector>

#include <cuda_runtime_api.h>

#include <gtest/gtest.h>

#include "epistle/cuda.hpp"
#include "epistle/group.hpp"

#include "support/bad_rank.hpp"
#include "support/cuda_devices.hpp"
#include "support/cuda_play.hpp"
#include "support/round_trip.hpp"

namespace epistle::testing {
namespace {

std::int64_t free_bytes() {
  std::size_t free = 0;
  std::size_t total = 0;
  check_cuda(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return static_cast<std::int64_t>(free);
}

class GpuMemory : public OnGpu<> {};

TEST_F(GpuMemory, MoreThanTheGpuHasIsRefusedOnAllRanks) {
  // Whatever stays when a dispatcher has gone is there now.
  expect_play("direct", small_scenario());
  if (HasFailure()) return;
  const std::int64_t before = free_bytes();
  DispatcherConfig config;
  config.hidden = 8192;
  config.num_experts = 8;
  config.top_k = 2;
  config.max_tokens = 4096;
  // Half of it on each of two ranks would fit, together with the rows of combine it does not.
  config.sizing = Capacity{.rows_per_rank = before / (2 * config.hidden * 2) + 1};
  std::vector<Outcome> outcomes(2);
  run_thread_ranks(2,
                   [&](Group& group) {
                     outcomes[static_cast<std::size_t>(group.rank())] =
                         outcome_of([&] { (void)Dispatcher(group, "direct", config, CudaOptions{.device = 0}); });
                     // The group is not the worse for it.
                     group.barrier();
                   },
                   {.timeout = kCudaTimeout});
  for (const Outcome& outcome : outcomes) {
    ASSERT_TRUE(outcome.has_value());
    EXPECT_EQ(outcome->code(), ErrorCode::kOutOfMemory) << outcome->what();
    EXPECT_NE(std::string(outcome->what()).find("bytes free"), std::string::npos) << outcome->what();
  }
  EXPECT_EQ(free_bytes(), before);
}

}  // namespace
}  // namespace epistle::testing
