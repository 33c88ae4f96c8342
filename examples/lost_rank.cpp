// A rank goes away in the middle of the work. The others see it in the call that waits for it, can ask which rank it
// was without waiting for anything, and go on without it: what its experts would have done is left out of the sums.

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <latch>
#include <vector>

#include "epistle/dispatcher.hpp"
#include "epistle/routing.hpp"

namespace {

constexpr int kRanks = 4;
constexpr int kLeavingRank = 2;
constexpr int kStepsBefore = 3;
constexpr std::int32_t kExpertsPerRank = 2;
constexpr std::int32_t kTopK = 2;
constexpr std::int64_t kTokens = 16;
constexpr std::int64_t kHidden = 8;

epistle::Rows rows_of(std::vector<float>& values) {
  return {.data = values.data(), .num_rows = kTokens, .hidden = kHidden, .dtype = epistle::DType::kFp32};
}

// One round trip, experts being the identity.
void run_step(epistle::Dispatcher& moe, const epistle::RoutingTable& routing, std::vector<float>& tokens) {
  const epistle::Received received =
      moe.dispatch({.expert_ids = routing.ids(), .weights = routing.probs(), .tokens = rows_of(tokens)});
  moe.combine({.received = received, .rows = received.rows(), .out = rows_of(tokens)});
}

// Asks the dispatcher which rank it is.
bool finds_the_lost_rank(const epistle::Dispatcher& moe) {
  return moe.poll() == epistle::Health::kPeerLost && moe.suspects() == std::vector<int>{kLeavingRank};
}

// A step of all ones without the lost rank: every token comes back as the sum of the weights of the experts that are
// left.
bool goes_on_without_it(epistle::Group& group, epistle::Dispatcher& moe, const epistle::RoutingTable& routing) {
  group.set_mask({kLeavingRank});  // every survivor does the same
  std::vector<float> tokens(static_cast<std::size_t>(kTokens * kHidden), 1.0F);
  run_step(moe, routing, tokens);
  std::printf("rank %d went on without rank %d\n", group.rank(), kLeavingRank);
  for (std::int64_t token = 0; token < kTokens; ++token) {
    float expected = 0.0F;
    for (std::int64_t entry = token * kTopK; entry < (token + 1) * kTopK; ++entry) {
      const auto idx = static_cast<std::size_t>(entry);
      if (routing.expert_ids[idx] / kExpertsPerRank != kLeavingRank) expected += routing.weights[idx];
    }
    for (std::int64_t column = 0; column < kHidden; ++column) {
      if (tokens[static_cast<std::size_t>(token * kHidden + column)] != expected) return false;
    }
  }
  return true;
}

// Returns true where the rank learned what it had to, and could go on.
bool run_rank(epistle::Group& group, std::latch& all_have_looked) {
  epistle::Dispatcher moe(group, "direct",
                          {.hidden = kHidden,
                           .num_experts = kRanks * kExpertsPerRank,
                           .top_k = kTopK,
                           .max_tokens = kTokens,
                           .input = epistle::DType::kFp32});
  const epistle::RoutingTable routing =
      epistle::generate_routing(epistle::RoutingSpec::parse("uniform"), {.num_tokens = kTokens,
                                                                         .num_experts = kRanks * kExpertsPerRank,
                                                                         .top_k = kTopK,
                                                                         .rank = group.rank(),
                                                                         .num_ranks = group.size()});
  std::vector<float> tokens(static_cast<std::size_t>(kTokens * kHidden), 1.0F);
  for (int step = 0; step < kStepsBefore; ++step) run_step(moe, routing, tokens);
  if (group.rank() == kLeavingRank) return true;

  try {
    run_step(moe, routing, tokens);
  } catch (const epistle::Error& error) {
    std::printf("rank %d: %s\n", group.rank(), error.what());
  }
  const bool found = finds_the_lost_rank(moe);
  all_have_looked.arrive_and_wait();  // a rank that has ended is lost, too, for one that still looks
  return goes_on_without_it(group, moe, routing) && found;
}

}  // namespace

int main() {
  try {
    std::atomic<int> num_wrong{0};
    std::latch all_have_looked(kRanks - 1);
    epistle::run_thread_ranks(kRanks, [&](epistle::Group& group) {
      if (!run_rank(group, all_have_looked)) ++num_wrong;
    });
    return num_wrong == 0 ? 0 : 1;
  } catch (const epistle::Error& error) {
    std::fprintf(stderr, "lost_rank: %s\n", error.what());
    return 1;
  }
}
