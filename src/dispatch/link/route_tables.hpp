// Who passes what on, as plain tables that a GPU can read: for the tokens of one rank, and for those of its peers that
// go to this rank's domain. Pairs are those of a token and a domain in which it has a row.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "epistle/dispatcher.hpp"

#include "group/domains.hpp"
#include "layout/dispatch_layout.hpp"

namespace epistle {

/// Where a rank's tokens go: [num_tokens, top_k] each.
struct TokenPlacesView {
  std::int64_t num_tokens = 0;
  std::span<const std::int32_t> expert_ids;  ///< slots where experts are placed
  std::span<const std::int32_t> rows;        ///< output row at the expert's rank; -1 = none, or dropped
  std::span<const float> weights;
};

/// One of a token's top-k places in a domain, as it travels.
struct RoutePlace {
  std::int32_t rank = -1;  ///< -1 = not in this domain, or dropped
  std::int32_t row = -1;
  float weight = 0.0F;
};

/// A row that a token has in a domain, ranks ascending, those of one rank in top-k order. Token rows: one for each
/// rank, with the sum of its weights.
struct RouteTerm {
  static constexpr std::int32_t kFirst = 1;  ///< of its rank: the row that is written across
  static constexpr std::int32_t kLast = 2;   ///< of its rank: there its sum is rounded

  std::int32_t rank = -1;  ///< -1 = no more
  std::int32_t row = -1;
  float weight = 0.0F;
  std::int32_t flags = 0;
};

/// Where the sum of a token over a domain is when it has come back.
struct DomainRow {
  std::int32_t domain = -1;  ///< -1 = no more
  std::int32_t row = -1;     ///< among those that this rank sends to other domains; or among its own domain's
};

/// Bytes of what prepare sends for a pair: TokenRecordHeader, then the top-k places.
[[nodiscard]] constexpr std::int64_t route_record_bytes(std::int32_t top_k) noexcept {
  return static_cast<std::int64_t>(sizeof(TokenRecordHeader)) + top_k * static_cast<std::int64_t>(sizeof(RoutePlace));
}

/// How many pairs every rank has in every domain. Those that leave a rank's domain are numbered domain by domain, in
/// the order of tokens, and so are those that a rank is sent, by the domain they come from.
class DomainPairs {
 public:
  DomainPairs() = default;
  /// `counts`: [num_ranks, num_domains].
  DomainPairs(const Domains& domains, std::vector<std::int32_t> counts);

  [[nodiscard]] std::int64_t num(int rank, int domain) const noexcept {
    return counts_[static_cast<std::size_t>(rank) * static_cast<std::size_t>(domains_.count()) +
                   static_cast<std::size_t>(domain)];
  }
  /// Of the rank's own domain.
  [[nodiscard]] std::int64_t num_own(int rank) const noexcept { return num(rank, domains_.domain_of(rank)); }
  [[nodiscard]] std::int64_t num_sent(int rank) const noexcept { return first_sent(rank, domains_.count()); }
  [[nodiscard]] std::int64_t first_sent(int rank, int domain) const noexcept;
  /// What the rank's peer in `domain` sends to it.
  [[nodiscard]] std::int64_t num_received_from(int rank, int domain) const noexcept {
    return num(domains_.rank_at(domain, domains_.index_of(rank)), domains_.domain_of(rank));
  }
  [[nodiscard]] std::int64_t num_received(int rank) const noexcept { return first_received(rank, domains_.count()); }
  [[nodiscard]] std::int64_t first_received(int rank, int domain) const noexcept;

 private:
  Domains domains_{1};
  std::vector<std::int32_t> counts_;
};

/// The tables of one rank and one routing.
class RouteTables {
 public:
  /// `places` need not stay.
  RouteTables(const DispatchLayout& layout, const Domains& domains, int rank, const TokenPlacesView& places);
  RouteTables() = default;

  /// [num_domains] pairs of this rank.
  [[nodiscard]] const std::vector<std::int32_t>& counts() const noexcept { return counts_; }
  /// Rows of this rank's tokens by link, those included that others pass on.
  [[nodiscard]] const LinkBytes& link_rows() const noexcept { return link_rows_; }

  /// Once all counts are known. Room is made for everything.
  void set_pairs(DomainPairs pairs);
  [[nodiscard]] const DomainPairs& pairs() const noexcept { return pairs_; }

  /// Writes the records for a domain, one behind the other.
  void write_records(int domain, const TokenPlacesView& places, std::byte* records) const;
  /// Reads what this rank's peer in `domain` has written.
  void read_records(int domain, const std::byte* records);
  /// Fills in what follows from this rank's own places.
  void fill_own(const TokenPlacesView& places);

  /// [num_sent] the token of every pair that leaves.
  [[nodiscard]] const std::vector<std::int32_t>& sent_tokens() const noexcept { return sent_tokens_; }
  /// [num_own] likewise of those that stay.
  [[nodiscard]] const std::vector<std::int32_t>& own_tokens() const noexcept { return own_tokens_; }
  /// [num_received + num_own, top_k] of the pairs that this rank passes on.
  [[nodiscard]] const std::vector<RouteTerm>& terms() const noexcept { return terms_; }
  /// The same by place in the top-k.
  [[nodiscard]] const std::vector<RoutePlace>& places() const noexcept { return places_; }
  /// [num_tokens, max_domains_per_token] domains ascending.
  [[nodiscard]] const std::vector<DomainRow>& token_rows() const noexcept { return token_rows_; }

 private:
  /// The places of one token in a domain; false where it has none.
  bool collect(std::int64_t token, int domain, const TokenPlacesView& places, RoutePlace* found) const;
  void set_entry(std::int64_t entry, const RoutePlace* places);
  void count(const TokenPlacesView& places);

  DispatchLayout layout_;
  Domains domains_{1};
  int rank_ = 0;
  std::vector<std::int32_t> counts_;
  LinkBytes link_rows_;
  DomainPairs pairs_;
  std::vector<std::int32_t> sent_tokens_;
  std::vector<std::int32_t> own_tokens_;
  std::vector<RouteTerm> terms_;
  std::vector<RoutePlace> places_;
  std::vector<DomainRow> token_rows_;
};

}  // namespace epistle
