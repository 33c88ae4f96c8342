// Which experts recorded tokens use together: what tells of any placement how many ranks and domains a token goes to.
// A histogram of experts does not tell it, and pairs miss it by up to 1.6%: experts of a router are used in company.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace epistle {

class RecordedSets {
 public:
  /// Sets that are kept: the mean number of ranks of so many tokens is known to 0.1%.
  static constexpr std::size_t kMaxSets = 65536;

  RecordedSets(std::int32_t num_experts, std::int32_t top_k);

  /// The experts of one token; negative ids are left out. Of more than kMaxSets tokens every second, fourth, ... is
  /// kept, so that the kept ones are spread evenly over all.
  void add_token(std::span<const std::int32_t> experts);

  [[nodiscard]] std::int64_t num_tokens() const noexcept { return num_tokens_; }

  /// [num_experts]; part of all tokens that use an expert.
  [[nodiscard]] std::vector<double> inclusion() const;

  /// Groups that a token's experts lie in, on average over the kept sets, where expert e lies in group
  /// `group_of_expert[e]`.
  [[nodiscard]] double expected_distinct_groups(std::span<const std::int32_t> group_of_expert,
                                                std::int32_t num_groups) const;

 private:
  void keep_every_second();

  std::size_t top_k_;
  std::int64_t num_tokens_ = 0;
  std::int64_t stride_ = 1;         ///< tokens between two that are kept
  std::vector<std::int64_t> uses_;  // [num_experts]
  std::vector<std::int32_t> kept_;  // [num kept, top_k]
};

}  // namespace epistle
