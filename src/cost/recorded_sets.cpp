#include "cost/recorded_sets.hpp"

#include <algorithm>
#include <cstddef>

#include "core/reject.hpp"

namespace epistle {

RecordedSets::RecordedSets(std::int32_t num_experts, std::int32_t top_k) : top_k_(static_cast<std::size_t>(top_k)) {
  if (num_experts < 1 || top_k < 1) reject("recorded sets need an expert, and one per token");
  uses_.assign(static_cast<std::size_t>(num_experts), 0);
}

void RecordedSets::add_token(std::span<const std::int32_t> experts) {
  if (experts.size() != top_k_) reject("a recorded token has another number of experts than the others");
  for (const std::int32_t expert : experts) {
    if (expert >= 0) ++uses_.at(static_cast<std::size_t>(expert));
  }
  if (num_tokens_++ % stride_ != 0) return;
  if (kept_.size() == kMaxSets * top_k_) {
    keep_every_second();
    // Of the token at hand the wider stride may say otherwise.
    if ((num_tokens_ - 1) % stride_ != 0) return;
  }
  kept_.insert(kept_.end(), experts.begin(), experts.end());
}

void RecordedSets::keep_every_second() {
  for (std::size_t set = 0; 2 * set * top_k_ < kept_.size(); ++set) {
    std::copy_n(kept_.begin() + static_cast<std::ptrdiff_t>(2 * set * top_k_), top_k_,
                kept_.begin() + static_cast<std::ptrdiff_t>(set * top_k_));
  }
  kept_.resize(kept_.size() / (2 * top_k_) * top_k_);
  stride_ *= 2;
}

std::vector<double> RecordedSets::inclusion() const {
  std::vector<double> shares(uses_.size(), 0.0);
  for (std::size_t expert = 0; expert < shares.size() && num_tokens_ > 0; ++expert) {
    shares[expert] = static_cast<double>(uses_[expert]) / static_cast<double>(num_tokens_);
  }
  return shares;
}

double RecordedSets::expected_distinct_groups(std::span<const std::int32_t> group_of_expert,
                                              std::int32_t num_groups) const {
  if (group_of_expert.size() != uses_.size()) reject("groups must be given of every recorded expert");
  if (kept_.empty()) return 0.0;
  std::vector<std::size_t> last_set(static_cast<std::size_t>(num_groups), 0);  // 1 + the last one that uses a group
  std::int64_t distinct = 0;
  for (std::size_t begin = 0; begin < kept_.size(); begin += top_k_) {
    for (std::size_t idx = begin; idx < begin + top_k_; ++idx) {
      if (kept_[idx] < 0) continue;
      std::size_t& last = last_set.at(static_cast<std::size_t>(group_of_expert[static_cast<std::size_t>(kept_[idx])]));
      distinct += last != begin + 1 ? 1 : 0;
      last = begin + 1;
    }
  }
  return static_cast<double>(distinct) * static_cast<double>(top_k_) / static_cast<double>(kept_.size());
}

}  // namespace epistle
