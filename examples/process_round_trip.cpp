// The round trip between processes on one host, with bf16 rows and routing weights.
//
//   epistle run -n 4 -- ./process_round_trip        (torchrun, mpirun and srun start it as well)
//
// Experts are the identity, and the weights of a token sum to 1, so every token must come back as it left.

#include <bit>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "epistle/dispatcher.hpp"
#include "epistle/group.hpp"
#include "epistle/routing.hpp"

namespace {

constexpr std::int32_t kExpertsPerRank = 2;
constexpr std::int32_t kTopK = 2;
constexpr std::int64_t kTokens = 32;
constexpr std::int64_t kHidden = 64;

// bf16 is the upper half of fp32; exact here, because the value has at most 8 significant bits.
std::uint16_t to_bf16(float value) { return static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(value) >> 16U); }

// Even integers from 2 to 128: halving them, as the weights below do, is exact in bf16.
std::uint16_t element(int rank, std::int64_t token, std::int64_t column) {
  return to_bf16(static_cast<float>(2 + 2 * ((rank * 7 + token * 3 + column) % 64)));
}

// Each token goes to an expert of the next rank and to one of the rank after it, half to each.
epistle::RoutingTable make_routing(const epistle::Group& group) {
  epistle::RoutingTable routing;
  routing.num_tokens = kTokens;
  routing.num_experts = kExpertsPerRank * group.size();
  routing.top_k = kTopK;
  for (std::int64_t token = 0; token < kTokens; ++token) {
    for (std::int32_t k = 0; k < kTopK; ++k) {
      const std::int32_t owner = (group.rank() + 1 + k) % group.size();
      const auto local_expert = static_cast<std::int32_t>((token + k) % kExpertsPerRank);
      routing.expert_ids.push_back(owner * kExpertsPerRank + local_expert);
      routing.weights.push_back(0.5F);
    }
  }
  return routing;
}

int run_rank() {
  epistle::Group group = epistle::join_process_group();

  epistle::Dispatcher moe(group, "direct",
                          {.hidden = kHidden,
                           .num_experts = kExpertsPerRank * group.size(),
                           .top_k = kTopK,
                           .max_tokens = kTokens,
                           .input = epistle::DType::kBf16,
                           .layout = epistle::ExpertMajor{}});

  const epistle::RoutingTable routing = make_routing(group);
  std::vector<std::uint16_t> tokens;
  for (std::int64_t token = 0; token < kTokens; ++token) {
    for (std::int64_t column = 0; column < kHidden; ++column) tokens.push_back(element(group.rank(), token, column));
  }

  const auto rows_of = [](std::vector<std::uint16_t>& values) {
    return epistle::Rows{.data = values.data(), .num_rows = kTokens, .hidden = kHidden, .dtype = epistle::DType::kBf16};
  };

  const epistle::Handle handle = moe.prepare({.expert_ids = routing.ids(), .weights = routing.probs()});
  const epistle::Received received = moe.dispatch({.handle = handle, .tokens = rows_of(tokens)});

  // The rows are given to combine as they came: identity experts.
  std::vector<std::uint16_t> result(tokens.size());
  moe.combine({.handle = handle, .rows = received.rows(), .out = rows_of(result)});

  const bool same = result == tokens;
  std::printf("rank %d of %d: received %lld rows, tokens came back %s\n", group.rank(), group.size(),
              static_cast<long long>(received.num_rows()), same ? "unchanged" : "CHANGED");
  return same ? 0 : 1;
}

}  // namespace

int main() {
  if (!epistle::is_launched()) {
    std::fprintf(stderr, "usage: epistle run -n 4 -- process_round_trip\n");
    return 2;
  }
  try {
    return run_rank();
  } catch (const epistle::Error& error) {  // a peer that died or stalled ends up here, on every survivor
    std::fprintf(stderr, "process_round_trip: %s\n", error.what());
    return 1;
  }
}
