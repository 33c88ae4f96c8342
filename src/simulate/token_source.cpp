#include "simulate/token_source.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <utility>

#include <fmt/format.h>

#include "epistle/trace.hpp"

#include "core/reject.hpp"
#include "routing/philox.hpp"
#include "routing/popularity.hpp"

namespace epistle::simulate {
namespace {

/// Draws that decide who takes whose place are keyed by the step in place of a rank.
PhiloxStream drift_numbers(std::uint64_t seed, std::int64_t step) {
  return {seed, {.stream = RandomStream::kShuffle, .rank = static_cast<std::uint32_t>(step), .token = 1}};
}

std::vector<double> to_doubles(const std::vector<std::uint64_t>& values) { return {values.begin(), values.end()}; }

}  // namespace

TokenSource::TokenSource(TokenRules rules) : rules_(std::move(rules)) {
  if (rules_.routing.kind == RoutingKind::kTrace) read_trace();
  if (rules_.drift < 0.0 || rules_.drift > 1.0) {
    reject(fmt::format("the drift is {}; it must be a part of the experts, from 0 to 1", rules_.drift));
  }
  // What cannot be generated is refused here, before any work.
  if (rules_.routing.kind != RoutingKind::kTrace) {
    (void)generate_routing(rules_.routing, {.num_tokens = 0,
                                            .num_experts = rules_.num_experts,
                                            .top_k = rules_.top_k,
                                            .num_groups = rules_.num_groups,
                                            .groups_per_token = rules_.groups_per_token,
                                            .seed = rules_.seed});
  }
  label_.resize(static_cast<std::size_t>(rules_.num_experts));
  std::iota(label_.begin(), label_.end(), 0);
}

void TokenSource::read_trace() {
  trace_ = read_trace_layer(rules_.routing.trace_path, {.layer = rules_.trace_layer}).table;
  if (trace_.num_tokens == 0) reject(fmt::format("the layer of '{}' has no tokens", rules_.routing.trace_path));
  const auto adopt = [&](std::string_view name, std::int32_t& wanted, std::int32_t recorded) {
    if (wanted != 0 && wanted != recorded) {
      reject(fmt::format("{} is {}, but the trace '{}' was recorded with {}; ask for {} or leave it out", name, wanted,
                         rules_.routing.trace_path, recorded, recorded));
    }
    wanted = recorded;
  };
  adopt("num_experts", rules_.num_experts, trace_.num_experts);
  adopt("top_k", rules_.top_k, trace_.top_k);
  recorded_.emplace(trace_.num_experts, trace_.top_k);
  const auto top_k = static_cast<std::size_t>(trace_.top_k);
  for (std::size_t begin = 0; begin < trace_.expert_ids.size(); begin += top_k) {
    recorded_->add_token(std::span(trace_.expert_ids).subspan(begin, top_k));
  }
}

void TokenSource::begin_step(std::int64_t step) {
  step_ = step;
  if (step == 0 || rules_.drift <= 0.0) return;
  PhiloxStream random = drift_numbers(rules_.seed, step);
  // Two experts change places at a time; within their group, so that a router's groups stay what they are.
  const std::int32_t num_groups = limits_groups() ? rules_.num_groups : 1;
  const auto group_size = static_cast<std::uint64_t>(rules_.num_experts / num_groups);
  const auto num_pairs = std::lround(rules_.drift * rules_.num_experts / 2);
  for (long pair = 0; pair < num_pairs; ++pair) {
    const std::uint64_t first = random.below(static_cast<std::uint64_t>(num_groups)) * group_size;
    std::swap(label_[first + random.below(group_size)], label_[first + random.below(group_size)]);
  }
}

std::span<const std::int32_t> TokenSource::ids(std::int32_t rank) {
  const std::int64_t table_rank = step_ * rules_.num_ranks + rank;
  if (rules_.routing.kind == RoutingKind::kTrace) {
    const auto top_k = static_cast<std::size_t>(rules_.top_k);
    const auto num_recorded = static_cast<std::size_t>(trace_.num_tokens);
    ids_.resize(static_cast<std::size_t>(rules_.tokens_per_rank) * top_k);
    auto token = static_cast<std::size_t>(table_rank * rules_.tokens_per_rank) % num_recorded;
    for (std::size_t begin = 0; begin < ids_.size(); begin += top_k) {
      std::copy_n(trace_.expert_ids.begin() + static_cast<std::ptrdiff_t>(token * top_k), top_k,
                  ids_.begin() + static_cast<std::ptrdiff_t>(begin));
      token = token + 1 == num_recorded ? 0 : token + 1;
    }
  } else {
    ids_ = generate_routing(rules_.routing, {.num_tokens = rules_.tokens_per_rank,
                                             .num_experts = rules_.num_experts,
                                             .top_k = rules_.top_k,
                                             .num_groups = rules_.num_groups,
                                             .groups_per_token = rules_.groups_per_token,
                                             .rank = static_cast<std::int32_t>(table_rank),
                                             .num_ranks = static_cast<std::int32_t>(table_rank) + 1,
                                             .seed = rules_.seed})
               .expert_ids;
  }
  if (step_ > 0 && rules_.drift > 0.0) relabel();
  return ids_;
}

void TokenSource::relabel() {
  for (std::int32_t& id : ids_) {
    if (id >= 0) id = label_[static_cast<std::size_t>(id)];
  }
}

bool TokenSource::limits_groups() const noexcept {
  return rules_.routing.kind == RoutingKind::kForcedRandom && rules_.groups_per_token < rules_.num_groups;
}

std::optional<std::vector<double>> TokenSource::popularity() const {
  std::vector<double> shares;
  switch (rules_.routing.kind) {
    case RoutingKind::kBalanced:
    case RoutingKind::kTrace:
      return std::nullopt;
    case RoutingKind::kForcedRandom:
      if (limits_groups()) return std::nullopt;
      [[fallthrough]];
    case RoutingKind::kUniform:
      shares.assign(label_.size(), 1.0);
      break;
    case RoutingKind::kZipf:
      shares = to_doubles(zipf_popularity(rules_.num_experts, rules_.routing.parameter, rules_.seed));
      break;
    case RoutingKind::kLognormal:
      shares = to_doubles(lognormal_popularity(rules_.num_experts, rules_.routing.parameter, rules_.seed));
      break;
  }
  std::vector<double> labelled(shares.size());
  for (std::size_t expert = 0; expert < shares.size(); ++expert) {
    labelled[static_cast<std::size_t>(label_[expert])] = shares[expert];
  }
  return labelled;
}

}  // namespace epistle::simulate
