// Which ranks reach each other by load and store: blocks of ranks of one size, in rank order.
#pragma once

namespace epistle {

class Domains {
 public:
  /// All ranks in one.
  explicit constexpr Domains(int num_ranks) noexcept : num_ranks_(num_ranks), domain_size_(num_ranks) {}
  /// `domain_size` divides `num_ranks`: resolve_domain_size() sees to it.
  constexpr Domains(int num_ranks, int domain_size) noexcept : num_ranks_(num_ranks), domain_size_(domain_size) {}

  [[nodiscard]] constexpr int num_ranks() const noexcept { return num_ranks_; }
  [[nodiscard]] constexpr int size() const noexcept { return domain_size_; }
  [[nodiscard]] constexpr int count() const noexcept { return num_ranks_ / domain_size_; }
  [[nodiscard]] constexpr int domain_of(int rank) const noexcept { return rank / domain_size_; }
  [[nodiscard]] constexpr int index_of(int rank) const noexcept { return rank % domain_size_; }
  [[nodiscard]] constexpr int rank_at(int domain, int index) const noexcept { return domain * domain_size_ + index; }
  [[nodiscard]] constexpr int first_rank(int domain) const noexcept { return domain * domain_size_; }
  [[nodiscard]] constexpr bool share_one(int a, int b) const noexcept { return domain_of(a) == domain_of(b); }

 private:
  int num_ranks_;
  int domain_size_;
};

}  // namespace epistle
