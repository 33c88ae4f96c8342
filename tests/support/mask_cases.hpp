// What tests of masks have in common.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <thread>
#include <vector>

#include "epistle/error.hpp"

#include "support/round_trip.hpp"

namespace epistle::testing {

inline Scenario masked_scenario(const std::vector<int>& masked) {
  Scenario scenario;
  scenario.config = {.hidden = 32, .num_experts = 9, .top_k = 3, .max_tokens = 12};
  scenario.tokens_per_rank = {5, 12, 0, 9};
  scenario.masked = masked;
  return scenario;
}

inline ErrorCode code_of(const std::function<void()>& call) {
  const Outcome outcome = outcome_of(call);
  return outcome ? outcome->code() : ErrorCode::kOk;
}

/// Threads that wait for each other by other means than the group.
class Meeting {
 public:
  explicit Meeting(int num_ranks) : num_ranks_(num_ranks) {}
  void wait() {
    const int generation = num_arrived_.fetch_add(1) / num_ranks_;
    while (num_arrived_.load() < (generation + 1) * num_ranks_)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }

 private:
  int num_ranks_;
  std::atomic<int> num_arrived_{0};
};

}  // namespace epistle::testing
