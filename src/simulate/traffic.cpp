#include "simulate/traffic.hpp"

#include <algorithm>

namespace epistle::simulate {

std::int32_t RankGrid::gateway(std::int32_t domain, std::int32_t rail) const noexcept {
  const std::int32_t first = domain * ranks_per_domain;
  return first + rail % std::min(ranks_per_domain, num_ranks - first);
}

TrafficCounter::TrafficCounter(const RankGrid& grid) : grid_(grid) {
  const auto num_ranks = static_cast<std::size_t>(grid.num_ranks);
  for (std::int32_t rank = 0; rank < grid.num_ranks; ++rank) {
    domain_of_rank_.push_back(grid.domain_of(rank));
    rail_of_rank_.push_back(grid.rail_of(rank));
  }
  last_token_of_rank_.assign(num_ranks, -1);
  last_token_of_domain_.assign(static_cast<std::size_t>(grid.num_domains()), -1);
  clear();
}

void TrafficCounter::clear() {
  const auto num_ranks = static_cast<std::size_t>(grid_.num_ranks);
  for (std::vector<LinkRows>& rows : links_) rows.assign(num_ranks, {});
  ranks_.assign(num_ranks, {});
  num_tokens_ = 0;
  num_rank_rows_ = 0;
  num_domain_rows_ = 0;
}

void TrafficCounter::add_straight(LinkRows* rows, const Place& from, const Place& to) noexcept {
  LinkRows& sender = rows[from.rank];
  if (from.rank == to.rank) {
    ++sender.self;
  } else if (from.domain == to.domain) {
    ++sender.domain_out;
    ++rows[to.rank].domain_in;
  } else {
    ++sender.network_out;
    ++rows[to.rank].network_in;
    sender.other_rail += from.rail != to.rail ? 1 : 0;
  }
}

void TrafficCounter::add_by_domain(const Place& from, const Place& to, bool first_of_domain) noexcept {
  LinkRows* const rows = rows_of(Travel::kPerDomain);
  if (from.domain == to.domain) {
    add_straight(rows, from, to);
    return;
  }
  const Place gateway = place_of(grid_.gateway(to.domain, from.rail));
  if (first_of_domain) add_straight(rows, from, gateway);
  if (gateway.rank != to.rank) add_straight(rows, gateway, to);
}

void TrafficCounter::add_token(std::int32_t src_rank, std::span<const std::int32_t> ranks) {
  const Place from = place_of(src_rank);
  const std::int64_t token = num_seen_++;
  ++num_tokens_;
  RankRows& sent = ranks_[static_cast<std::size_t>(src_rank)];
  ++sent.num_tokens;
  for (const std::int32_t rank : ranks) {
    const Place to = place_of(rank);
    RankRows& received = ranks_[static_cast<std::size_t>(rank)];
    const bool remote = rank != src_rank;
    ++received.assignments;
    sent.sent_remote_assignments += remote ? 1 : 0;
    add_straight(rows_of(Travel::kPerExpert), from, to);
    if (last_token_of_rank_[static_cast<std::size_t>(rank)] == token) continue;
    last_token_of_rank_[static_cast<std::size_t>(rank)] = token;
    ++num_rank_rows_;
    ++sent.sent_rows;
    ++received.received_rows;
    sent.sent_remote_rows += remote ? 1 : 0;
    received.received_remote_rows += remote ? 1 : 0;
    add_straight(rows_of(Travel::kPerRank), from, to);
    std::int64_t& last = last_token_of_domain_[static_cast<std::size_t>(to.domain)];
    const bool first_of_domain = last != token;
    last = token;
    num_domain_rows_ += first_of_domain ? 1 : 0;
    sent.sent_domains += first_of_domain ? 1 : 0;
    add_by_domain(from, to, first_of_domain);
  }
}

double TrafficCounter::distinct_ranks() const noexcept {
  return num_tokens_ > 0 ? static_cast<double>(num_rank_rows_) / static_cast<double>(num_tokens_) : 0.0;
}

double TrafficCounter::distinct_domains() const noexcept {
  return num_tokens_ > 0 ? static_cast<double>(num_domain_rows_) / static_cast<double>(num_tokens_) : 0.0;
}

}  // namespace epistle::simulate
