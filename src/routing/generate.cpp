// How each kind of table is drawn.
//
// Keys. Every number is a function of (seed, stream, rank, token of the rank, position); see philox.hpp. The rank is a
// part of the key, so ranks may have different num_tokens. Only `balanced` counts tokens over all ranks: it takes
// rank * num_tokens + token as the global token, so it is exact when all ranks ask for the same num_tokens.
//
// uniform        the first top_k steps of a Fisher-Yates shuffle of the experts
// balanced       assignment number n (top_k per token, in global order) goes to expert n * stride mod num_experts
// forced-random  uniform scores in (0, 1), group-limited top-k (groups scored as DeepSeek-V3 does), weights normalised
// zipf, lognormal  see popularity.hpp
// trace          see trace_reader.hpp
//
// num_groups and groups_per_token matter to forced-random only: the other kinds state their own distribution.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <limits>
#include <new>
#include <numeric>
#include <utility>

#include <fmt/format.h>

#include "epistle/error.hpp"
#include "epistle/routing.hpp"

#include "core/reject.hpp"
#include "routing/limits.hpp"
#include "routing/philox.hpp"
#include "routing/popularity.hpp"
#include "routing/top_k.hpp"
#include "routing/trace_reader.hpp"
#include "topology/memory.hpp"

namespace epistle {
namespace {

// Token indices travel as int32 in the dispatchers' records.
constexpr std::int64_t kMaxTokens = std::numeric_limits<std::int32_t>::max();

// A weight is an integer of 1 to 2^20 over the sum of its row: a row of any real width sums exactly in a double.
constexpr int kWeightBits = 20;

// A score is an odd multiple of 2^-24: exact in fp32, never 0 or 1.
constexpr int kScoreBits = 23;

void check_request(const RoutingSpec& spec, const RoutingRequest& request) {
  if (request.num_tokens < 0 || request.num_tokens > kMaxTokens) {
    reject(fmt::format("num_tokens is {}, expected 0 to {}", request.num_tokens, kMaxTokens));
  }
  if (request.num_ranks < 1 || request.rank < 0 || request.rank >= request.num_ranks) {
    reject(fmt::format("rank {} of {} ranks, expected 0 <= rank < num_ranks", request.rank, request.num_ranks));
  }
  if (spec.kind == RoutingKind::kTrace) {
    if (spec.trace_path.empty()) reject("the trace has no file name; use trace:FILE");
    return;
  }
  if (request.num_experts < 1 || request.num_experts > kMaxRoutedExperts) {
    reject(fmt::format("num_experts is {}, expected 1 to {}", request.num_experts, kMaxRoutedExperts));
  }
  if (request.top_k < 1 || request.top_k > request.num_experts) {
    reject(fmt::format("top_k is {}, expected 1 to num_experts = {}", request.top_k, request.num_experts));
  }
  if (!std::isfinite(spec.parameter) || spec.parameter < 0.0) {
    reject(fmt::format("the parameter of '{}' must be a finite number >= 0", spec.to_string()));
  }
}

RandomAddress address_of(const RoutingRequest& request, RandomStream stream, std::size_t token) {
  return {
      .stream = stream, .rank = static_cast<std::uint32_t>(request.rank), .token = static_cast<std::uint32_t>(token)};
}

RoutingTable make_empty_table(const RoutingRequest& request) {
  RoutingTable table{request.num_tokens, request.num_experts, request.top_k, {}, {}};
  const auto num_entries = static_cast<std::size_t>(request.num_tokens) * static_cast<std::size_t>(request.top_k);
  require_memory(static_cast<std::int64_t>(num_entries * (sizeof(std::int32_t) + sizeof(float))), "routing tables",
                 "lower num_tokens, or use more memory");
  table.expert_ids.resize(num_entries);
  table.weights.resize(num_entries);
  return table;
}

using FillRow = std::function<void(std::size_t token, std::span<std::int32_t> ids)>;

void fill_ids(RoutingTable& table, const FillRow& fill_row) {
  const auto top_k = static_cast<std::size_t>(table.top_k);
  for (std::size_t token = 0; token < static_cast<std::size_t>(table.num_tokens); ++token) {
    fill_row(token, std::span(table.expert_ids).subspan(token * top_k, top_k));
  }
}

void fill_weights(RoutingTable& table, const RoutingRequest& request) {
  const auto top_k = static_cast<std::size_t>(table.top_k);
  std::vector<std::uint32_t> shares(top_k);
  for (std::size_t token = 0; token < static_cast<std::size_t>(table.num_tokens); ++token) {
    PhiloxStream random(request.seed, address_of(request, RandomStream::kWeights, token));
    for (std::uint32_t& share : shares) share = 1 + (random.next_u32() >> (kBitsPerWord - kWeightBits));
    std::sort(shares.begin(), shares.end(), std::greater<>());
    const auto sum = static_cast<double>(std::accumulate(shares.begin(), shares.end(), std::uint64_t{0}));
    for (std::size_t k_idx = 0; k_idx < top_k; ++k_idx) {
      table.weights[token * top_k + k_idx] = static_cast<float>(static_cast<double>(shares[k_idx]) / sum);
    }
  }
}

void fill_uniform(RoutingTable& table, const RoutingRequest& request) {
  std::vector<std::int32_t> experts(static_cast<std::size_t>(table.num_experts));
  std::iota(experts.begin(), experts.end(), 0);
  std::vector<std::size_t> swapped_with(static_cast<std::size_t>(table.top_k));
  fill_ids(table, [&](std::size_t token, std::span<std::int32_t> ids) {
    PhiloxStream random(request.seed, address_of(request, RandomStream::kExperts, token));
    for (std::size_t k_idx = 0; k_idx < ids.size(); ++k_idx) {
      swapped_with[k_idx] = k_idx + random.below(experts.size() - k_idx);
      std::swap(experts[k_idx], experts[swapped_with[k_idx]]);
      ids[k_idx] = experts[k_idx];
    }
    // Undone, so that a token does not depend on the tokens before it.
    for (std::size_t k_idx = ids.size(); k_idx-- > 0;) std::swap(experts[k_idx], experts[swapped_with[k_idx]]);
  });
}

/// A step coprime to num_experts, so that it visits every expert, and nearest to num_experts / top_k, so that one
/// token's experts lie evenly over the range and with it over the ranks.
std::uint64_t spreading_stride(std::uint64_t num_experts, std::uint64_t top_k) {
  const std::uint64_t target = num_experts / top_k;
  for (std::uint64_t distance = 0;; ++distance) {
    if (std::gcd(target + distance, num_experts) == 1) return target + distance;
    if (distance < target && std::gcd(target - distance, num_experts) == 1) return target - distance;
  }
}

void fill_balanced(RoutingTable& table, const RoutingRequest& request) {
  const auto num_experts = static_cast<std::uint64_t>(table.num_experts);
  const auto top_k = static_cast<std::uint64_t>(table.top_k);
  const std::uint64_t stride = spreading_stride(num_experts, top_k);
  const std::uint64_t first_token =
      static_cast<std::uint64_t>(request.rank) * static_cast<std::uint64_t>(request.num_tokens);
  fill_ids(table, [&](std::size_t token, std::span<std::int32_t> ids) {
    const std::uint64_t first_assignment = (first_token + token) % num_experts * top_k;
    for (std::size_t k_idx = 0; k_idx < ids.size(); ++k_idx) {
      const std::uint64_t position = (first_assignment + k_idx) % num_experts;
      ids[k_idx] = static_cast<std::int32_t>(position * stride % num_experts);
    }
  });
}

void fill_forced_random(RoutingTable& table, const RoutingRequest& request) {
  TopKSelector selector(table.num_experts, {.top_k = table.top_k,
                                            .num_groups = request.num_groups,
                                            .groups_per_token = request.groups_per_token,
                                            .group_score = GroupScore::kTopTwo,
                                            .normalize = true});
  std::vector<float> scores(static_cast<std::size_t>(table.num_experts));
  fill_ids(table, [&](std::size_t token, std::span<std::int32_t> ids) {
    PhiloxStream random(request.seed, address_of(request, RandomStream::kScores, token));
    for (float& score : scores) {
      const std::uint32_t odd = 2 * (random.next_u32() >> (kBitsPerWord - kScoreBits)) + 1;
      score = std::ldexp(static_cast<float>(odd), -(kScoreBits + 1));
    }
    selector.select(scores, ids, std::span(table.weights).subspan(token * ids.size(), ids.size()));
  });
}

void fill_by_popularity(RoutingTable& table, const RoutingRequest& request, std::vector<std::uint64_t> popularity) {
  PopularitySampler sampler(std::move(popularity));
  fill_ids(table, [&](std::size_t token, std::span<std::int32_t> ids) {
    PhiloxStream random(request.seed, address_of(request, RandomStream::kExperts, token));
    sampler.draw_distinct(random, ids);
  });
}

RoutingTable take_from_trace(const RoutingSpec& spec, const RoutingRequest& request) {
  RoutingTable table =
      read_trace_window(spec.trace_path, request.trace_layer,
                        {.first_token = request.rank * request.num_tokens, .num_tokens = request.num_tokens});
  const auto check = [&](std::string_view name, std::int32_t requested, std::int32_t recorded) {
    if (requested == 0 || requested == recorded) return;
    reject(fmt::format("{} is {}, but the trace '{}' was recorded with {}; ask for {} or leave it at 0", name,
                       requested, spec.trace_path, recorded, recorded));
  };
  check("num_experts", request.num_experts, table.num_experts);
  check("top_k", request.top_k, table.top_k);
  return table;
}

RoutingTable generate(const RoutingSpec& spec, const RoutingRequest& request) {
  if (spec.kind == RoutingKind::kTrace) return take_from_trace(spec, request);
  RoutingTable table = make_empty_table(request);
  switch (spec.kind) {
    case RoutingKind::kUniform:
      fill_uniform(table, request);
      break;
    case RoutingKind::kBalanced:
      fill_balanced(table, request);
      break;
    case RoutingKind::kForcedRandom:
      fill_forced_random(table, request);
      return table;  // its weights are its scores
    case RoutingKind::kZipf:
      fill_by_popularity(table, request, zipf_popularity(request.num_experts, spec.parameter, request.seed));
      break;
    case RoutingKind::kLognormal:
      fill_by_popularity(table, request, lognormal_popularity(request.num_experts, spec.parameter, request.seed));
      break;
    case RoutingKind::kTrace:
      break;
  }
  fill_weights(table, request);
  return table;
}

}  // namespace

RoutingTable generate_routing(const RoutingSpec& spec, const RoutingRequest& request) {
  check_request(spec, request);
  try {
    return generate(spec, request);
  } catch (const std::bad_alloc&) {
    throw Error(ErrorCode::kOutOfMemory, fmt::format("a routing table of {} tokens with top_k {} does not fit; lower "
                                                     "num_tokens",
                                                     request.num_tokens, request.top_k));
  }
}

}  // namespace epistle
