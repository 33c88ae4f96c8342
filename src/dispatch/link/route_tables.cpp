#include "dispatch/link/route_tables.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

namespace epistle {

// ---- Numbers --------------------------------------------------------------------------------------------------------

DomainPairs::DomainPairs(const Domains& domains, std::vector<std::int32_t> counts)
    : domains_(domains), counts_(std::move(counts)) {}

std::int64_t DomainPairs::first_sent(int rank, int domain) const noexcept {
  std::int64_t first = 0;
  for (int before = 0; before < domain; ++before) {
    if (before != domains_.domain_of(rank)) first += num(rank, before);
  }
  return first;
}

std::int64_t DomainPairs::first_received(int rank, int domain) const noexcept {
  std::int64_t first = 0;
  for (int before = 0; before < domain; ++before) {
    if (before != domains_.domain_of(rank)) first += num_received_from(rank, before);
  }
  return first;
}

// ---- Tables ---------------------------------------------------------------------------------------------------------

RouteTables::RouteTables(const DispatchLayout& layout, const Domains& domains, int rank, const TokenPlacesView& places)
    : layout_(layout), domains_(domains), rank_(rank), counts_(static_cast<std::size_t>(domains.count()), 0) {
  count(places);
}

bool RouteTables::collect(std::int64_t token, int domain, const TokenPlacesView& places, RoutePlace* found) const {
  const auto top_k = static_cast<std::size_t>(layout_.params().top_k);
  const std::size_t first = static_cast<std::size_t>(token) * top_k;
  bool has_row = false;
  for (std::size_t position = 0; position < top_k; ++position) {
    found[position] = RoutePlace{};
    if (places.rows[first + position] < 0) continue;
    const int rank = layout_.partition().rank_of(places.expert_ids[first + position]);
    if (domains_.domain_of(rank) != domain) continue;
    found[position] = {.rank = rank, .row = places.rows[first + position], .weight = places.weights[first + position]};
    has_row = true;
  }
  return has_row;
}

void RouteTables::count(const TokenPlacesView& places) {
  const auto top_k = static_cast<std::size_t>(layout_.params().top_k);
  std::vector<bool> has_rank(static_cast<std::size_t>(domains_.num_ranks()));
  std::vector<bool> has_domain(static_cast<std::size_t>(domains_.count()));
  for (std::int64_t token = 0; token < places.num_tokens; ++token) {
    std::fill(has_rank.begin(), has_rank.end(), false);
    std::fill(has_domain.begin(), has_domain.end(), false);
    const std::size_t first = static_cast<std::size_t>(token) * top_k;
    for (std::size_t entry = first; entry < first + top_k; ++entry) {
      if (places.rows[entry] < 0) continue;
      const int rank = layout_.partition().rank_of(places.expert_ids[entry]);
      if (has_rank[static_cast<std::size_t>(rank)]) continue;
      has_rank[static_cast<std::size_t>(rank)] = true;
      // Whoever passes it on has this rank's index.
      ++(domains_.index_of(rank) == domains_.index_of(rank_) ? link_rows_.own : link_rows_.domain);
      const int domain = domains_.domain_of(rank);
      if (has_domain[static_cast<std::size_t>(domain)]) continue;
      has_domain[static_cast<std::size_t>(domain)] = true;
      ++counts_[static_cast<std::size_t>(domain)];
      if (domain != domains_.domain_of(rank_)) ++link_rows_.network;
    }
  }
}

void RouteTables::set_pairs(DomainPairs pairs) {
  pairs_ = std::move(pairs);
  const auto num_entries = static_cast<std::size_t>(pairs_.num_received(rank_) + pairs_.num_own(rank_));
  const auto top_k = static_cast<std::size_t>(layout_.params().top_k);
  sent_tokens_.assign(static_cast<std::size_t>(pairs_.num_sent(rank_)), -1);
  own_tokens_.assign(static_cast<std::size_t>(pairs_.num_own(rank_)), -1);
  terms_.assign(num_entries * top_k, RouteTerm{});
  places_.assign(num_entries * top_k, RoutePlace{});
}

void RouteTables::write_records(int domain, const TokenPlacesView& places, std::byte* records) const {
  const std::int32_t top_k = layout_.params().top_k;
  std::vector<RoutePlace> found(static_cast<std::size_t>(top_k));
  for (std::int64_t token = 0; token < places.num_tokens; ++token) {
    if (!collect(token, domain, places, found.data())) continue;
    const TokenRecordHeader header{.src_rank = rank_, .src_token = static_cast<std::int32_t>(token)};
    std::memcpy(records, &header, sizeof(header));
    std::memcpy(records + sizeof(header), found.data(), found.size() * sizeof(RoutePlace));
    records += route_record_bytes(top_k);
  }
}

void RouteTables::read_records(int domain, const std::byte* records) {
  const std::int32_t top_k = layout_.params().top_k;
  std::vector<RoutePlace> found(static_cast<std::size_t>(top_k));
  const std::int64_t first = pairs_.first_received(rank_, domain);
  const std::int64_t num_records = pairs_.num_received_from(rank_, domain);
  for (std::int64_t idx = 0; idx < num_records; ++idx, records += route_record_bytes(top_k)) {
    std::memcpy(found.data(), records + sizeof(TokenRecordHeader), found.size() * sizeof(RoutePlace));
    set_entry(first + idx, found.data());
  }
}

void RouteTables::fill_own(const TokenPlacesView& places) {
  const int own = domains_.domain_of(rank_);
  const auto slots = static_cast<std::size_t>(layout_.max_domains_per_token());
  std::vector<RoutePlace> found(static_cast<std::size_t>(layout_.params().top_k));
  std::vector<std::int64_t> next(static_cast<std::size_t>(domains_.count()), 0);
  for (int domain = 0; domain < domains_.count(); ++domain) {
    if (domain != own) next[static_cast<std::size_t>(domain)] = pairs_.first_sent(rank_, domain);
  }
  token_rows_.assign(static_cast<std::size_t>(places.num_tokens) * slots, DomainRow{});
  for (std::int64_t token = 0; token < places.num_tokens; ++token) {
    std::size_t slot = static_cast<std::size_t>(token) * slots;
    for (int domain = 0; domain < domains_.count(); ++domain) {
      if (!collect(token, domain, places, found.data())) continue;
      const std::int64_t row = next[static_cast<std::size_t>(domain)]++;
      token_rows_[slot++] = {.domain = domain, .row = static_cast<std::int32_t>(row)};
      std::vector<std::int32_t>& tokens = domain == own ? own_tokens_ : sent_tokens_;
      tokens[static_cast<std::size_t>(row)] = static_cast<std::int32_t>(token);
      if (domain == own) set_entry(pairs_.num_received(rank_) + row, found.data());
    }
  }
}

void RouteTables::set_entry(std::int64_t entry, const RoutePlace* places) {
  const auto top_k = static_cast<std::size_t>(layout_.params().top_k);
  const std::size_t first = static_cast<std::size_t>(entry) * top_k;
  std::copy(places, places + top_k, places_.begin() + static_cast<std::ptrdiff_t>(first));
  RouteTerm* const terms = &terms_[first];
  std::size_t num_terms = 0;
  for (std::size_t position = 0; position < top_k; ++position) {
    if (places[position].rank < 0) continue;
    terms[num_terms++] = {
        .rank = places[position].rank, .row = places[position].row, .weight = places[position].weight};
  }
  std::stable_sort(terms, terms + num_terms,
                   [](const RouteTerm& left, const RouteTerm& right) { return left.rank < right.rank; });
  if (layout_.token_major()) {
    // One row of a rank, whose weights are added in top-k order.
    std::size_t num_rows = 0;
    for (std::size_t idx = 0; idx < num_terms; ++idx) {
      if (num_rows > 0 && terms[num_rows - 1].rank == terms[idx].rank) {
        terms[num_rows - 1].weight += terms[idx].weight;
      } else {
        terms[num_rows] = terms[idx];
        terms[num_rows++].weight = 0.0F + terms[idx].weight;  // sums start at +0
      }
    }
    std::fill(terms + num_rows, terms + num_terms, RouteTerm{});
    num_terms = num_rows;
  }
  for (std::size_t idx = 0; idx < num_terms; ++idx) {
    const bool is_first = idx == 0 || terms[idx - 1].rank != terms[idx].rank;
    const bool is_last = idx + 1 == num_terms || terms[idx + 1].rank != terms[idx].rank;
    terms[idx].flags = (is_first ? RouteTerm::kFirst : 0) | (is_last ? RouteTerm::kLast : 0);
  }
}

}  // namespace epistle
