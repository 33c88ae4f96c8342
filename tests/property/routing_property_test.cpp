#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <map>
#include <set>

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "epistle/routing.hpp"
#include "epistle/trace.hpp"

#include "support/temp_dir.hpp"

namespace epistle {
namespace {

std::span<const std::int32_t> ids_of(const RoutingTable& table, std::int64_t token) {
  return std::span(table.expert_ids)
      .subspan(static_cast<std::size_t>(token * table.top_k), static_cast<std::size_t>(table.top_k));
}

std::span<const float> weights_of(const RoutingTable& table, std::int64_t token) {
  return std::span(table.weights)
      .subspan(static_cast<std::size_t>(token * table.top_k), static_cast<std::size_t>(table.top_k));
}

RoutingRequest any_request() {
  RoutingRequest request;
  request.num_tokens = *rc::gen::inRange<std::int64_t>(0, 40);
  request.num_experts = *rc::gen::inRange(1, 130);
  request.top_k = *rc::gen::inRange(1, request.num_experts + 1);
  request.num_ranks = *rc::gen::inRange(1, 6);
  request.rank = *rc::gen::inRange(0, request.num_ranks);
  request.seed = *rc::gen::arbitrary<std::uint64_t>();
  return request;
}

RoutingSpec any_synthetic_spec() {
  RoutingSpec spec;
  spec.kind = *rc::gen::element(RoutingKind::kUniform, RoutingKind::kBalanced, RoutingKind::kForcedRandom,
                                RoutingKind::kZipf, RoutingKind::kLognormal);
  if (spec.kind == RoutingKind::kZipf || spec.kind == RoutingKind::kLognormal) {
    spec.parameter = *rc::gen::inRange(0, 500) / 100.0;
  }
  return spec;
}

RC_GTEST_PROP(RoutingProperty, TablesKeepTheirPromises, ()) {
  const RoutingRequest request = any_request();
  const RoutingSpec spec = any_synthetic_spec();
  const RoutingTable table = generate_routing(spec, request);
  RC_ASSERT(table.num_tokens == request.num_tokens);
  RC_ASSERT(static_cast<std::int64_t>(table.expert_ids.size()) == request.num_tokens * request.top_k);
  for (std::int64_t token = 0; token < table.num_tokens; ++token) {
    const auto ids = ids_of(table, token);
    const std::set<std::int32_t> distinct(ids.begin(), ids.end());
    RC_ASSERT(distinct.size() == ids.size());
    RC_ASSERT(*distinct.begin() >= 0);
    RC_ASSERT(*distinct.rbegin() < table.num_experts);
    const auto weights = weights_of(table, token);
    RC_ASSERT(std::is_sorted(weights.rbegin(), weights.rend()));
    RC_ASSERT(weights.back() > 0.0F);
    double sum = 0.0;
    for (const float weight : weights) sum += static_cast<double>(weight);
    RC_ASSERT(std::fabs(sum - 1.0) < 1e-5);
  }
}

RC_GTEST_PROP(RoutingProperty, SameRequestSameBits, ()) {
  const RoutingRequest request = any_request();
  const RoutingSpec spec = any_synthetic_spec();
  const RoutingTable first = generate_routing(spec, request);
  const RoutingTable second = generate_routing(RoutingSpec::parse(spec.to_string()), request);
  RC_ASSERT(first.expert_ids == second.expert_ids);
  RC_ASSERT(first.weights == second.weights);
}

RC_GTEST_PROP(RoutingProperty, BalancedCountsDifferByAtMostOne, ()) {
  RoutingRequest request = any_request();
  std::vector<std::int64_t> counts(static_cast<std::size_t>(request.num_experts), 0);
  for (request.rank = 0; request.rank < request.num_ranks; ++request.rank) {
    for (const std::int32_t id : generate_routing(RoutingSpec::parse("balanced"), request).expert_ids) {
      ++counts.at(static_cast<std::size_t>(id));
    }
  }
  const auto [least, most] = std::minmax_element(counts.begin(), counts.end());
  RC_ASSERT(*most - *least <= 1);
}

// The plain form: sort the groups, drop the experts outside, sort the experts.
std::vector<std::int32_t> plain_top_k(std::span<const float> scores, const TopKOptions& options) {
  const auto width = scores.size() / static_cast<std::size_t>(options.num_groups);
  std::vector<std::pair<float, std::int32_t>> groups;  // negated score, id: ascending order is the order of choice
  for (std::int32_t group = 0; group < options.num_groups; ++group) {
    const auto own = scores.subspan(static_cast<std::size_t>(group) * width, width);
    std::vector<float> sorted(own.begin(), own.end());
    std::sort(sorted.rbegin(), sorted.rend());
    const bool pair = options.group_score == GroupScore::kTopTwo && sorted.size() > 1;
    groups.emplace_back(-(pair ? sorted[0] + sorted[1] : sorted[0]), group);
  }
  std::sort(groups.begin(), groups.end());
  std::vector<std::pair<float, std::int32_t>> experts;
  for (std::int32_t kept = 0; kept < options.groups_per_token; ++kept) {
    const auto first = static_cast<std::size_t>(groups[static_cast<std::size_t>(kept)].second) * width;
    for (std::size_t expert = first; expert < first + width; ++expert) {
      experts.emplace_back(-scores[expert], static_cast<std::int32_t>(expert));
    }
  }
  std::sort(experts.begin(), experts.end());
  std::vector<std::int32_t> ids;
  ids.reserve(static_cast<std::size_t>(options.top_k));
  for (std::int32_t k_idx = 0; k_idx < options.top_k; ++k_idx) {
    ids.push_back(experts[static_cast<std::size_t>(k_idx)].second);
  }
  return ids;
}

RC_GTEST_PROP(RoutingProperty, TopKMatchesThePlainForm, ()) {
  TopKOptions options;
  options.num_groups = *rc::gen::inRange(1, 9);
  options.groups_per_token = *rc::gen::inRange(1, options.num_groups + 1);
  const std::int32_t group_size = *rc::gen::inRange(1, 9);
  options.top_k = *rc::gen::inRange(1, options.groups_per_token * group_size + 1);
  options.group_score = *rc::gen::element(GroupScore::kMax, GroupScore::kTopTwo);
  options.normalize = false;
  const std::int32_t num_experts = options.num_groups * group_size;
  const std::int64_t num_tokens = *rc::gen::inRange<std::int64_t>(0, 5);
  // Few distinct values, so that ties are common.
  const auto steps = *rc::gen::container<std::vector<int>>(static_cast<std::size_t>(num_tokens * num_experts),
                                                           rc::gen::inRange(-3, 4));
  const std::vector<float> scores(steps.begin(), steps.end());
  const RoutingTable table = group_limited_top_k(scores, num_tokens, num_experts, options);
  for (std::int64_t token = 0; token < num_tokens; ++token) {
    const auto row =
        std::span(scores).subspan(static_cast<std::size_t>(token * num_experts), static_cast<std::size_t>(num_experts));
    const auto ids = ids_of(table, token);
    RC_ASSERT(std::equal(ids.begin(), ids.end(), plain_top_k(row, options).begin()));
    for (std::size_t k_idx = 0; k_idx < ids.size(); ++k_idx) {
      RC_ASSERT(weights_of(table, token)[k_idx] == row[static_cast<std::size_t>(ids[k_idx])]);
    }
  }
}

RC_GTEST_PROP(RoutingProperty, CapacityKeepsTheBestAndReportsTheRest, ()) {
  const RoutingRequest request = any_request();
  RoutingTable table = generate_routing(any_synthetic_spec(), request);
  const RoutingTable before = table;
  CapacityOptions options;
  options.factor = *rc::gen::inRange(1, 300) / 100.0;
  options.policy = *rc::gen::element(DropPolicy::kProbability, DropPolicy::kPosition);
  options.pad = true;
  const CapacityResult result = apply_capacity(table, options);

  std::map<std::int32_t, std::vector<std::size_t>> kept;
  std::map<std::int32_t, std::vector<std::size_t>> dropped;
  for (std::size_t entry = 0; entry < table.expert_ids.size(); ++entry) {
    const bool stayed = table.expert_ids[entry] == before.expert_ids[entry];
    RC_ASSERT(stayed || (table.expert_ids[entry] == kNoExpert && table.weights[entry] == 0.0F));
    (stayed ? kept : dropped)[before.expert_ids[entry]].push_back(entry);
  }
  std::int64_t total = 0;
  for (std::int32_t expert = 0; expert < table.num_experts; ++expert) {
    const auto idx = static_cast<std::size_t>(expert);
    const auto num_kept = static_cast<std::int64_t>(kept[expert].size());
    RC_ASSERT(num_kept + result.padding_per_expert[idx] == result.capacity);
    RC_ASSERT(static_cast<std::int64_t>(dropped[expert].size()) == result.dropped_per_expert[idx]);
    RC_ASSERT(dropped[expert].empty() || num_kept == result.capacity);
    total += result.dropped_per_expert[idx];
    for (const std::size_t gone : dropped[expert]) {
      for (const std::size_t stays : kept[expert]) {
        const bool heavier = before.weights[stays] > before.weights[gone];
        const bool tie = before.weights[stays] == before.weights[gone];
        const bool by_position = options.policy == DropPolicy::kPosition;
        RC_ASSERT((by_position && stays < gone) || (!by_position && (heavier || (tie && stays < gone))));
      }
    }
  }
  RC_ASSERT(total == result.dropped);
}

std::string to_json_line(const RoutingTable& table, std::int32_t layer) {
  std::string ids;
  std::string weights;
  for (std::int64_t token = 0; token < table.num_tokens; ++token) {
    std::string id_row;
    std::string weight_row;
    for (std::size_t k_idx = 0; k_idx < static_cast<std::size_t>(table.top_k); ++k_idx) {
      const char* const comma = k_idx > 0 ? "," : "";
      id_row += comma + std::to_string(ids_of(table, token)[k_idx]);
      // Eight decimals and an exponent say more than fp32 holds.
      std::array<char, 32> text{};
      (void)std::snprintf(text.data(), text.size(), "%s%.9e", comma,
                          static_cast<double>(weights_of(table, token)[k_idx]));
      weight_row += text.data();
    }
    ids += (token > 0 ? ",[" : "[") + id_row + "]";
    weights += (token > 0 ? ",[" : "[") + weight_row + "]";
  }
  std::vector<std::string> members = {"\"layer\":" + std::to_string(layer),
                                      "\"num_experts\":" + std::to_string(table.num_experts),
                                      "\"top_k\":" + std::to_string(table.top_k),
                                      "\"num_tokens\":" + std::to_string(table.num_tokens),
                                      "\"expert_ids\":[" + ids + "]",
                                      "\"weights\":[" + weights + "]"};
  std::string line;
  while (!members.empty()) {  // keys in any order
    const auto next = *rc::gen::inRange<std::size_t>(0, members.size());
    line += (line.empty() ? "{" : ",") + members[next];
    members.erase(members.begin() + static_cast<std::ptrdiff_t>(next));
  }
  return line + "}\n";
}

RC_GTEST_PROP(RoutingProperty, TracesReadBackAndRanksWrapRound, ()) {
  RoutingRequest request = any_request();
  const RoutingTable table = generate_routing(any_synthetic_spec(), request);
  const test::TempDir dir;
  const std::string path = dir.write("trace.jsonl", to_json_line(table, 4) + to_json_line(table, 5));
  const RoutingTable read = read_trace_layer(path, {.layer = 5}).table;
  RC_ASSERT(read.expert_ids == table.expert_ids);
  RC_ASSERT(read.weights == table.weights);
  RC_PRE(table.num_tokens > 0);

  RoutingRequest part = {.num_tokens = *rc::gen::inRange<std::int64_t>(0, 60),
                         .rank = request.rank,
                         .num_ranks = request.num_ranks,
                         .trace_layer = *rc::gen::element(-1, 4, 5)};
  const RoutingTable taken = generate_routing(RoutingSpec::parse("trace:" + path), part);
  RC_ASSERT(taken.num_tokens == part.num_tokens);
  for (std::int64_t token = 0; token < part.num_tokens; ++token) {
    const std::int64_t row = (part.rank * part.num_tokens + token) % table.num_tokens;
    RC_ASSERT(std::ranges::equal(ids_of(taken, token), ids_of(table, row)));
    RC_ASSERT(std::ranges::equal(weights_of(taken, token), weights_of(table, row)));
  }
}

}  // namespace
}  // namespace epistle
