// How often recorded tokens use each expert, and each two together: what can be said of a placement without looking at
// the tokens again.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace epistle {

class PairCounts {
 public:
  /// Counts of more experts would take more memory than they are worth.
  static constexpr std::int32_t kMaxExperts = 2048;

  /// Throws kInvalidArgument for more than kMaxExperts.
  PairCounts(std::int32_t num_experts, std::int32_t top_k);

  /// The experts of one token; negative ids are left out.
  void add_token(std::span<const std::int32_t> experts);

  /// [num_experts]; part of the tokens that use an expert.
  [[nodiscard]] std::vector<double> inclusion() const;

  /// Groups that a token's experts lie in, on average, where expert e lies in group `group_of_expert[e]`. A group's
  /// mean and mean square of experts per token follow from the pairs. Of all distributions with these two it is taken
  /// to be the one nearest to independent experts (least relative entropy), given that a token has top_k.
  [[nodiscard]] double expected_distinct_groups(std::span<const std::int32_t> group_of_expert,
                                                std::int32_t num_groups) const;

 private:
  [[nodiscard]] std::uint32_t& pair(std::int32_t a, std::int32_t b);

  std::int32_t num_experts_;
  std::int32_t top_k_;
  std::int64_t num_tokens_ = 0;
  std::vector<std::uint32_t> pairs_;  // [num_experts, num_experts]; the diagonal counts tokens
};

}  // namespace epistle
