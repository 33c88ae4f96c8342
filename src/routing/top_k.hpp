// Group-limited top-k of one token at a time; the whole-batch form is epistle::group_limited_top_k.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "epistle/routing.hpp"

namespace epistle {

class TopKSelector {
 public:
  /// Throws kInvalidArgument for options that do not fit `num_experts`.
  TopKSelector(std::int32_t num_experts, const TopKOptions& options);

  /// Chooses from `scores` [num_experts], finite, and writes `expert_ids` [top_k] and `weights` [top_k].
  void select(std::span<const float> scores, std::span<std::int32_t> expert_ids, std::span<float> weights);

 private:
  [[nodiscard]] float score_group(std::span<const float> group_scores) const;
  void collect_candidates(std::span<const float> scores);

  TopKOptions options_;
  std::size_t experts_per_group_ = 0;
  std::vector<float> group_scores_;        // [num_groups]
  std::vector<std::int32_t> group_order_;  // [num_groups]
  std::vector<std::int32_t> candidates_;   // experts of the groups kept
};

}  // namespace epistle
