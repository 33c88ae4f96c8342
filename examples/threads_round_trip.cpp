// One dispatch and one combine between four ranks that are threads of this process.
//
// Every rank owns two of eight experts and 16 tokens. A token's row goes to the ranks of its two experts; each rank
// doubles the rows it received in place of a real expert; combine brings them back and adds them up. A token whose
// experts live on one rank comes back doubled, one whose experts live on two ranks comes back fourfold.

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "epistle/dispatcher.hpp"
#include "epistle/group.hpp"
#include "epistle/layout.hpp"
#include "epistle/routing.hpp"

namespace {

constexpr int kRanks = 4;
constexpr std::int32_t kExperts = 8;
constexpr std::int32_t kTopK = 2;
constexpr std::int64_t kTokens = 16;
constexpr std::int64_t kHidden = 8;  // elements of a row

// A value that tells rank, token and element apart; small enough for every sum below to be exact in fp32.
float element(int rank, std::int64_t token, std::int64_t column) {
  return static_cast<float>(rank * 1000 + token * 10 + column);
}

// The number of different ranks that hold one of the token's experts.
int count_ranks(const epistle::RoutingTable& routing, std::int64_t token) {
  const epistle::ExpertPartition partition{.num_experts = kExperts, .num_ranks = kRanks};
  std::vector<bool> used(kRanks, false);
  int num_used = 0;
  for (std::int64_t k = 0; k < kTopK; ++k) {
    const auto entry = static_cast<std::size_t>(token * kTopK + k);
    const auto rank = static_cast<std::size_t>(partition.rank_of(routing.expert_ids[entry]));
    if (!used[rank]) ++num_used;
    used[rank] = true;
  }
  return num_used;
}

// What each rank runs. Returns the number of wrong elements among its own tokens.
int run_rank(epistle::Group& group) {
  epistle::DispatcherConfig config;
  config.hidden = kHidden;
  config.dtype = epistle::DType::kFp32;
  config.num_experts = kExperts;
  config.top_k = kTopK;
  config.max_tokens = kTokens;
  config.layout = epistle::OutputLayout::kTokenMajor;
  config.apply_weights = false;  // plain sums
  const auto dispatcher = epistle::make_dispatcher("direct", group, config);

  // A router would give this table; here the experts are drawn at random, the same on every machine.
  const epistle::RoutingTable routing =
      epistle::generate_routing(epistle::RoutingSpec::parse("uniform"), {.num_tokens = kTokens,
                                                                         .num_experts = kExperts,
                                                                         .top_k = kTopK,
                                                                         .rank = group.rank(),
                                                                         .num_ranks = group.size()});

  std::vector<float> tokens;
  for (std::int64_t token = 0; token < kTokens; ++token) {
    for (std::int64_t column = 0; column < kHidden; ++column) tokens.push_back(element(group.rank(), token, column));
  }

  const epistle::Handle handle = dispatcher->prepare(routing.view());
  const epistle::DispatchOutput& received =
      dispatcher->dispatch(handle, {.rows = tokens.data(), .num_tokens = kTokens});

  std::vector<float> expert_rows(static_cast<std::size_t>(received.num_rows * kHidden));
  if (!expert_rows.empty()) std::memcpy(expert_rows.data(), received.rows, expert_rows.size() * sizeof(float));
  for (float& value : expert_rows) value *= 2.0F;

  std::vector<float> result(tokens.size());
  dispatcher->combine(handle, expert_rows.data(), result.data(),
                      static_cast<std::int64_t>(result.size() * sizeof(float)));

  int num_wrong = 0;
  for (std::int64_t token = 0; token < kTokens; ++token) {
    const auto factor = static_cast<float>(2 * count_ranks(routing, token));
    for (std::int64_t column = 0; column < kHidden; ++column) {
      const float expected = factor * element(group.rank(), token, column);
      if (result[static_cast<std::size_t>(token * kHidden + column)] != expected) ++num_wrong;
    }
  }
  std::printf("rank %d: sent %lld rows, received %lld, %d elements wrong\n", group.rank(),
              static_cast<long long>(handle.stats().sent_rows), static_cast<long long>(received.num_rows), num_wrong);
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
