// One dispatch and one combine between four ranks that are threads of this process.
//
// Every rank owns two of eight experts and 16 tokens. A token's row goes to the ranks of its two experts; each rank
// doubles the rows it received in place of a real expert; combine brings them back and adds them up. A token whose
// experts live on one rank comes back doubled, one whose experts live on two ranks comes back fourfold.

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "epistle/dispatcher.hpp"
#include "epistle/routing.hpp"

namespace {

constexpr int kRanks = 4;
constexpr std::int32_t kExpertsPerRank = 2;
constexpr std::int32_t kTopK = 2;
constexpr std::int64_t kTokens = 16;
constexpr std::int64_t kHidden = 8;  // elements of a row

// A value that tells rank, token and element apart; small enough for every sum below to be exact in fp32.
float element(int rank, std::int64_t token, std::int64_t column) {
  return static_cast<float>(rank * 1000 + token * 10 + column);
}

// The number of different ranks that hold one of the token's two experts.
int count_ranks(const epistle::RoutingTable& routing, std::int64_t token) {
  const auto entry = static_cast<std::size_t>(token * kTopK);
  const std::int32_t first_rank = routing.expert_ids[entry] / kExpertsPerRank;
  const std::int32_t second_rank = routing.expert_ids[entry + 1] / kExpertsPerRank;
  return first_rank == second_rank ? 1 : 2;
}

// What each rank runs. Returns the number of wrong elements among its own tokens.
int run_rank(epistle::Group& group) {
  epistle::Dispatcher moe(group, "direct",
                          {.hidden = kHidden,
                           .num_experts = kRanks * kExpertsPerRank,
                           .top_k = kTopK,
                           .max_tokens = kTokens,
                           .input = epistle::DType::kFp32,
                           .layout = epistle::TokenMajor{},
                           .apply_weights = false});  // plain sums

  // A router would give this table; here the experts are drawn at random, the same on every machine.
  const epistle::RoutingTable routing =
      epistle::generate_routing(epistle::RoutingSpec::parse("uniform"), {.num_tokens = kTokens,
                                                                         .num_experts = kRanks * kExpertsPerRank,
                                                                         .top_k = kTopK,
                                                                         .rank = group.rank(),
                                                                         .num_ranks = group.size()});
  std::vector<float> tokens;
  for (std::int64_t token = 0; token < kTokens; ++token) {
    for (std::int64_t column = 0; column < kHidden; ++column) tokens.push_back(element(group.rank(), token, column));
  }
  const auto rows_of = [](auto& values) {
    return epistle::Rows{.data = values.data(), .num_rows = kTokens, .hidden = kHidden, .dtype = epistle::DType::kFp32};
  };

  const epistle::Handle handle = moe.prepare({.expert_ids = routing.ids()});
  const epistle::Received received = moe.dispatch({.handle = handle, .tokens = rows_of(tokens)});

  // The outputs go where combine reads them, so nothing is copied.
  const auto* inputs = static_cast<const float*>(received.rows().data);
  auto* outputs = static_cast<float*>(received.expert_outputs().data);
  for (std::int64_t i = 0; i < received.num_rows() * kHidden; ++i) outputs[i] = 2.0F * inputs[i];

  std::vector<float> result(tokens.size());
  moe.combine({.handle = handle, .rows = received.expert_outputs(), .out = rows_of(result)});

  int num_wrong = 0;
  for (std::int64_t token = 0; token < kTokens; ++token) {
    const auto factor = static_cast<float>(2 * count_ranks(routing, token));
    for (std::int64_t column = 0; column < kHidden; ++column) {
      const float expected = factor * element(group.rank(), token, column);
      if (result[static_cast<std::size_t>(token * kHidden + column)] != expected) ++num_wrong;
    }
  }
  std::printf("rank %d: sent %lld rows, received %lld, %d elements wrong\n", group.rank(),
              static_cast<long long>(handle.wait_stats().sent_rows), static_cast<long long>(received.num_rows()),
              num_wrong);
  return num_wrong;
}

}  // namespace

int main() {
  try {
    std::atomic<int> num_wrong{0};
    epistle::run_thread_ranks(kRanks, [&](epistle::Group& group) { num_wrong += run_rank(group); });
    return num_wrong == 0 ? 0 : 1;
  } catch (const epistle::Error& error) {
    std::fprintf(stderr, "threads_round_trip: %s\n", error.what());
    return 1;
  }
}
