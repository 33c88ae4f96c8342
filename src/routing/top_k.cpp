#include "routing/top_k.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include <fmt/format.h>

#include "epistle/error.hpp"

#include "core/reject.hpp"

namespace epistle {
namespace {

/// Moves the ids of the `num_best` highest scores to the front, in order; ties go to the lower id.
void order_best(std::span<std::int32_t> ids, std::size_t num_best, std::span<const float> scores) {
  std::partial_sort(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(num_best), ids.end(),
                    [scores](std::int32_t left, std::int32_t right) {
                      const float left_score = scores[static_cast<std::size_t>(left)];
                      const float right_score = scores[static_cast<std::size_t>(right)];
                      return left_score != right_score ? left_score > right_score : left < right;
                    });
}

void normalize_weights(std::span<float> weights) {
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  // Scores that sum to 0 stay as they are instead of becoming NaN (Megatron adds an epsilon for the same end).
  if (sum == 0.0) return;
  for (float& weight : weights) weight = static_cast<float>(static_cast<double>(weight) / sum);
}

}  // namespace

TopKSelector::TopKSelector(std::int32_t num_experts, const TopKOptions& options) : options_(options) {
  if (num_experts < 1) reject(fmt::format("num_experts is {}, expected at least 1", num_experts));
  if (options.top_k < 1 || options.top_k > num_experts) {
    reject(fmt::format("top_k is {}, expected 1 to num_experts = {}", options.top_k, num_experts));
  }
  if (options.num_groups < 1 || num_experts % options.num_groups != 0) {
    reject(fmt::format("num_groups is {}, expected a divisor of num_experts = {}", options.num_groups, num_experts));
  }
  if (options.groups_per_token < 1 || options.groups_per_token > options.num_groups) {
    reject(fmt::format("groups_per_token is {}, expected 1 to num_groups = {}", options.groups_per_token,
                       options.num_groups));
  }
  const std::int32_t experts_per_group = num_experts / options.num_groups;
  const std::int64_t reachable = static_cast<std::int64_t>(options.groups_per_token) * experts_per_group;
  if (options.top_k > reachable) {
    reject(fmt::format("top_k is {}, but {} groups of {} experts hold only {}; lower top_k or raise groups_per_token",
                       options.top_k, options.groups_per_token, experts_per_group, reachable));
  }
  experts_per_group_ = static_cast<std::size_t>(experts_per_group);
  group_scores_.resize(static_cast<std::size_t>(options.num_groups));
  group_order_.resize(group_scores_.size());
  candidates_.reserve(static_cast<std::size_t>(reachable));
}

float TopKSelector::score_group(std::span<const float> group_scores) const {
  if (options_.group_score == GroupScore::kMax || group_scores.size() == 1) {
    return *std::max_element(group_scores.begin(), group_scores.end());
  }
  float best = -std::numeric_limits<float>::infinity();
  float second = best;
  for (const float score : group_scores) {
    if (score > best) {
      second = best;
      best = score;
    } else {
      second = std::max(second, score);
    }
  }
  return best + second;
}

void TopKSelector::collect_candidates(std::span<const float> scores) {
  for (std::size_t group = 0; group < group_scores_.size(); ++group) {
    group_scores_[group] = score_group(scores.subspan(group * experts_per_group_, experts_per_group_));
  }
  std::iota(group_order_.begin(), group_order_.end(), 0);
  const auto num_kept = static_cast<std::size_t>(options_.groups_per_token);
  if (num_kept < group_order_.size()) order_best(group_order_, num_kept, group_scores_);

  candidates_.clear();
  for (std::size_t kept_idx = 0; kept_idx < num_kept; ++kept_idx) {
    const std::size_t first = static_cast<std::size_t>(group_order_[kept_idx]) * experts_per_group_;
    for (std::size_t expert = first; expert < first + experts_per_group_; ++expert) {
      candidates_.push_back(static_cast<std::int32_t>(expert));
    }
  }
}

void TopKSelector::select(std::span<const float> scores, std::span<std::int32_t> expert_ids, std::span<float> weights) {
  collect_candidates(scores);
  order_best(candidates_, expert_ids.size(), scores);
  for (std::size_t k_idx = 0; k_idx < expert_ids.size(); ++k_idx) {
    expert_ids[k_idx] = candidates_[k_idx];
    weights[k_idx] = scores[static_cast<std::size_t>(candidates_[k_idx])];
  }
  if (options_.normalize) normalize_weights(weights);
}

RoutingTable group_limited_top_k(std::span<const float> scores, std::int64_t num_tokens, std::int32_t num_experts,
                                 const TopKOptions& options) {
  TopKSelector selector(num_experts, options);
  const auto width = static_cast<std::size_t>(num_experts);
  if (num_tokens < 0 || scores.size() % width != 0 || scores.size() / width != static_cast<std::size_t>(num_tokens)) {
    reject(
        fmt::format("{} scores, expected num_tokens x num_experts = {} x {}", scores.size(), num_tokens, num_experts));
  }
  const auto bad = std::find_if(scores.begin(), scores.end(), [](float score) { return !std::isfinite(score); });
  if (bad != scores.end()) {
    const auto idx = static_cast<std::size_t>(bad - scores.begin());
    reject(fmt::format("the score of token {} for expert {} is {}, expected a finite number", idx / width, idx % width,
                       *bad));
  }

  RoutingTable table{num_tokens, num_experts, options.top_k, {}, {}};
  const auto top_k = static_cast<std::size_t>(options.top_k);
  table.expert_ids.resize(static_cast<std::size_t>(num_tokens) * top_k);
  table.weights.resize(table.expert_ids.size());
  for (std::size_t token = 0; token < static_cast<std::size_t>(num_tokens); ++token) {
    selector.select(scores.subspan(token * width, width), std::span(table.expert_ids).subspan(token * top_k, top_k),
                    std::span(table.weights).subspan(token * top_k, top_k));
  }
  return table;
}

}  // namespace epistle
