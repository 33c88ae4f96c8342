// The ranks of a group that are left out.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

namespace epistle {

/// Changed by the thread that makes its rank's calls, between two of them; read from any.
class RankMask {
 public:
  explicit RankMask(int num_ranks)
      : num_ranks_(num_ranks), is_masked_(new std::atomic<bool>[static_cast<std::size_t>(num_ranks)]) {
    for (int rank = 0; rank < num_ranks; ++rank) is_masked_[static_cast<std::size_t>(rank)].store(false);
  }

  [[nodiscard]] bool has(int rank) const noexcept {
    return is_masked_[static_cast<std::size_t>(rank)].load(std::memory_order_relaxed);
  }
  [[nodiscard]] std::vector<int> ranks() const {
    std::vector<int> masked;
    for (int rank = 0; rank < num_ranks_; ++rank) {
      if (has(rank)) masked.push_back(rank);
    }
    return masked;
  }
  /// Of those that are not left out.
  [[nodiscard]] int first_member() const noexcept { return first_member_; }
  [[nodiscard]] int num_members() const noexcept { return num_ranks_ - num_masked_; }

  /// `masked`: ascending, not all.
  void set(const std::vector<int>& masked) noexcept {
    for (int rank = 0; rank < num_ranks_; ++rank) {
      is_masked_[static_cast<std::size_t>(rank)].store(std::binary_search(masked.begin(), masked.end(), rank),
                                                       std::memory_order_relaxed);
    }
    num_masked_ = static_cast<int>(masked.size());
    for (first_member_ = 0; has(first_member_);) ++first_member_;
  }

 private:
  int num_ranks_;
  int num_masked_ = 0;
  int first_member_ = 0;
  std::unique_ptr<std::atomic<bool>[]> is_masked_;
};

}  // namespace epistle
