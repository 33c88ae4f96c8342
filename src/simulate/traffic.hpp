// Counts of the rows that a step moves, and over which links, for each way in which dispatchers move them. A link is a
// rank's way into its scale-up domain or to its network cards, in one direction.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace epistle::simulate {

/// How rows travel.
enum class Travel : std::int32_t {
  kPerExpert,  ///< a row for every (token, expert), straight to its rank
  kPerRank,    ///< a row for every (token, rank), straight to it
  kPerDomain,  ///< a row for every (token, domain) over the network, to the rank of the sender's rail, which passes it
               ///< on inside the domain; a row for every (token, rank) there
};
inline constexpr std::size_t kNumTravels = 3;

/// Ranks in scale-up domains of equal size, the last one with what is left. Ranks at the same place of their domains
/// are on one rail.
struct RankGrid {
  std::int32_t num_ranks = 1;
  std::int32_t ranks_per_domain = 1;

  [[nodiscard]] std::int32_t num_domains() const noexcept {
    return (num_ranks + ranks_per_domain - 1) / ranks_per_domain;
  }
  [[nodiscard]] std::int32_t domain_of(std::int32_t rank) const noexcept { return rank / ranks_per_domain; }
  [[nodiscard]] std::int32_t rail_of(std::int32_t rank) const noexcept { return rank % ranks_per_domain; }
  /// Of another domain, who takes what a rank sends there.
  [[nodiscard]] std::int32_t gateway(std::int32_t domain, std::int32_t rail) const noexcept;
};

/// Rows of one rank under one way of travel, on their way to experts. On the way back all go in the other direction.
struct LinkRows {
  std::int64_t self = 0;
  std::int64_t domain_out = 0;
  std::int64_t domain_in = 0;
  std::int64_t network_out = 0;
  std::int64_t network_in = 0;
  std::int64_t other_rail = 0;  ///< of network_out, to another rail
};

/// What one rank's dispatcher says of its rows (RoutingStats has the same names).
struct RankRows {
  std::int64_t num_tokens = 0;
  std::int64_t sent_rows = 0;  ///< once per (token, rank), itself included
  std::int64_t sent_remote_rows = 0;
  std::int64_t received_rows = 0;
  std::int64_t received_remote_rows = 0;
  std::int64_t sent_remote_assignments = 0;
  std::int64_t assignments = 0;   ///< (token, expert) that arrive: rows of its grouped GEMM
  std::int64_t sent_domains = 0;  ///< once per (token, domain), its own included
};

class TrafficCounter {
 public:
  explicit TrafficCounter(const RankGrid& grid);

  void clear();
  /// One token of `src_rank`: the rank of each of its experts, in any order.
  void add_token(std::int32_t src_rank, std::span<const std::int32_t> ranks);

  [[nodiscard]] const RankGrid& grid() const noexcept { return grid_; }
  [[nodiscard]] std::span<const LinkRows> links(Travel travel) const noexcept {
    return links_[static_cast<std::size_t>(travel)];
  }
  [[nodiscard]] std::span<const RankRows> ranks() const noexcept { return ranks_; }
  [[nodiscard]] std::int64_t num_tokens() const noexcept { return num_tokens_; }
  [[nodiscard]] double distinct_ranks() const noexcept;    ///< per token, on average
  [[nodiscard]] double distinct_domains() const noexcept;  ///< likewise

 private:
  /// A rank of the grid as seen from a token's.
  struct Place {
    std::int32_t rank;
    std::int32_t domain;
    std::int32_t rail;
  };
  [[nodiscard]] LinkRows* rows_of(Travel travel) noexcept { return links_[static_cast<std::size_t>(travel)].data(); }
  [[nodiscard]] Place place_of(std::int32_t rank) const noexcept {
    return {rank, domain_of_rank_[static_cast<std::size_t>(rank)], rail_of_rank_[static_cast<std::size_t>(rank)]};
  }
  static void add_straight(LinkRows* rows, const Place& from, const Place& to) noexcept;
  void add_by_domain(const Place& from, const Place& to, bool first_of_domain) noexcept;

  RankGrid grid_;
  std::vector<std::int32_t> domain_of_rank_;
  std::vector<std::int32_t> rail_of_rank_;
  std::vector<LinkRows> links_[kNumTravels];  // [num_ranks] each
  std::vector<RankRows> ranks_;
  std::vector<std::int64_t> last_token_of_rank_;    // the last token that went to a rank
  std::vector<std::int64_t> last_token_of_domain_;  // likewise
  std::int64_t num_tokens_ = 0;
  std::int64_t num_seen_ = 0;  // never goes back, so that what was seen need not be cleared
  std::int64_t num_rank_rows_ = 0;
  std::int64_t num_domain_rows_ = 0;
};

}  // namespace epistle::simulate
