// Plays a scenario on the CUDA device with ranks that are threads.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "epistle/group.hpp"

#include "support/cuda_memory.hpp"
#include "support/player.hpp"

namespace epistle::testing {

/// Longest wait of a rank for another: a test that hangs must not take the time of all others.
inline constexpr std::chrono::milliseconds kCudaTimeout{10'000};

inline void expect_play(const std::string& dispatcher, const Scenario& scenario,
                        const SubjectOptions& options = on_cuda(), std::chrono::milliseconds timeout = kCudaTimeout) {
  std::vector<Mismatch> mismatches(scenario.tokens_per_rank.size());
  try {
    run_thread_ranks(static_cast<int>(mismatches.size()),
                     [&](Group& group) {
                       mismatches[static_cast<std::size_t>(group.rank())] =
                           play_rank(group, dispatcher, scenario, options);
                     },
                     {.timeout = timeout, .domain_size = scenario.domain_size});
  } catch (const Error& error) {
    // A rank that found a mismatch leaves, and the others only report that.
    ADD_FAILURE() << to_string(error.code()) << ": " << error.what();
  }
  for (std::size_t rank = 0; rank < mismatches.size(); ++rank) {
    EXPECT_FALSE(mismatches[rank].has_value()) << "rank " << rank << ": " << *mismatches[rank];
  }
}

}  // namespace epistle::testing
