#include "dispatch/host/hybrid/route_exchange.hpp"

#include <algorithm>
#include <cstring>

namespace epistle::host {

RouteExchange::RouteExchange(HostContext& context, LinkTraffic& traffic)
    : context_(context),
      traffic_(traffic),
      places_(context),
      top_k_(static_cast<std::size_t>(context.config.top_k)),
      pairs_to_rank_(static_cast<std::size_t>(context.num_ranks)),
      dropped_of_expert_(static_cast<std::size_t>(context.layout().params().num_experts)),
      next_pair_(static_cast<std::size_t>(context.domains().count())) {}

void RouteExchange::reserve(HostHandle& handle) const {
  const int num_domains = traffic_.domains().count();
  const std::size_t num_sources = handle.passed_pairs.size();
  if (handle.mover_state == nullptr) handle.mover_state = std::make_unique<DomainRoutes>();
  auto& routes = static_cast<DomainRoutes&>(*handle.mover_state);
  routes.tables.resize(num_sources);
  routes.received.resize(num_sources);
  routes.sent.resize(static_cast<std::size_t>(num_domains));
  const std::size_t max_sends = std::min(top_k_, static_cast<std::size_t>(traffic_.domains().size()));
  for (std::size_t idx = 0; idx < num_sources; ++idx) {
    const auto num_received = static_cast<std::size_t>(handle.passed_pairs[idx].num);
    TokenTable& table = routes.tables[idx];
    table.tokens.reserve(num_received);
    table.expert_ids.reserve(num_received * top_k_);
    table.weights.reserve(num_received * top_k_);
    table.dst_row.reserve(num_received * top_k_);
    table.send_of.reserve(num_received * top_k_);
    table.sends.reserve(num_received * max_sends);
    table.send_begin.reserve(num_received + 1);
    routes.received[idx].reserve(num_received);
  }
  std::size_t num_sent = 0;
  for (std::size_t domain = 0; domain < handle.sent_pairs.size(); ++domain) {
    const auto num_to_domain = static_cast<std::size_t>(handle.sent_pairs[domain].num);
    routes.sent[domain].reserve(num_to_domain);
    num_sent += num_to_domain;
  }
  routes.pair_of.reserve(num_sent);
  routes.domain_of_pair.reserve(num_sent);
  routes.pair_begin.reserve(static_cast<std::size_t>(handle.num_tokens) + 1);
}

void RouteExchange::run(HostHandle& handle) {
  auto& routes = static_cast<DomainRoutes&>(*handle.mover_state);
  const SourceOrder sources(context_);
  send_records(handle);
  for (std::size_t step = 0; step < sources.count(); ++step) {
    // The own tokens first: their records need not travel.
    const std::size_t idx = sources.behind(step);
    const PairRun& run = handle.passed_pairs[idx];
    TokenTable& table = routes.tables[idx];
    table.tokens.clear();
    table.expert_ids.clear();
    table.weights.clear();
    step == 0 ? keep_own(handle, table) : receive_records(run, table);
    PlaceCounts counts{.pairs_to_rank = pairs_to_rank_, .dropped_of_expert = dropped_of_expert_};
    places_.place(handle.tables, run.peer, table, counts);
    places_.write_records(table, run.peer);
    routes.received[idx].clear();
    for (std::size_t token = 0; token < table.tokens.size(); ++token) {
      const bool has_row = table.send_begin[token] < table.send_begin[token + 1];
      if (has_row) routes.received[idx].push_back(static_cast<std::int32_t>(token));
    }
  }
  list_pairs(handle, routes);
  traffic_.flush(Phase::kLayout);
}

std::int32_t RouteExchange::id_in_domain(const HostHandle& handle, std::size_t entry, int domain) const noexcept {
  const std::int32_t expert = handle.expert_ids[entry];
  if (expert == kNoExpert) return kNoExpert;
  return traffic_.domains().domain_of(context_.rank_of_entry(handle, entry)) == domain ? expert : kNoExpert;
}

bool RouteExchange::goes_to(const HostHandle& handle, std::size_t token, int domain) const noexcept {
  for (std::size_t entry = token * top_k_; entry < (token + 1) * top_k_; ++entry) {
    if (id_in_domain(handle, entry, domain) != kNoExpert) return true;
  }
  return false;
}

void RouteExchange::send_records(const HostHandle& handle) {
  const int num_domains = traffic_.domains().count();
  const int own = traffic_.own_domain();
  for (int step = 1; step < num_domains; ++step) {
    const int domain = (own + step) % num_domains;
    const PairRun& run = handle.sent_pairs[static_cast<std::size_t>(domain)];
    if (run.num == 0) continue;
    pack_records(handle, domain, run.first_sent);
    traffic_.put({.peer = run.peer,
                  .from_row = run.first_sent,
                  .to_row = run.first_passed,
                  .num_rows = run.num,
                  .row_bytes = context_.layout().pair_record_bytes()});
    traffic_.signal(run.peer);
  }
}

void RouteExchange::pack_records(const HostHandle& handle, int domain, std::int64_t first_record) {
  const std::int64_t record_bytes = context_.layout().pair_record_bytes();
  std::byte* record = context_.own_section(BufferSection::kSendRows) + first_record * record_bytes;
  for (std::size_t token = 0; token < static_cast<std::size_t>(handle.num_tokens); ++token) {
    if (!goes_to(handle, token, domain)) continue;
    const TokenRecordHeader header{.src_rank = context_.rank, .src_token = static_cast<std::int32_t>(token)};
    std::memcpy(record, &header, sizeof(header));
    auto* ids = reinterpret_cast<std::int32_t*>(record + sizeof(header));
    for (std::size_t position = 0; position < top_k_; ++position) {
      ids[position] = id_in_domain(handle, token * top_k_ + position, domain);
    }
    std::memcpy(ids + top_k_, &handle.weights[token * top_k_], top_k_ * sizeof(float));
    record += record_bytes;
  }
}

void RouteExchange::keep_own(const HostHandle& handle, TokenTable& table) const {
  const int own = traffic_.own_domain();
  for (std::size_t token = 0; token < static_cast<std::size_t>(handle.num_tokens); ++token) {
    if (!goes_to(handle, token, own)) continue;
    table.tokens.push_back(static_cast<std::int32_t>(token));
    for (std::size_t entry = token * top_k_; entry < (token + 1) * top_k_; ++entry) {
      table.expert_ids.push_back(id_in_domain(handle, entry, own));
      table.weights.push_back(handle.weights[entry]);
    }
  }
}

void RouteExchange::receive_records(const PairRun& run, TokenTable& table) {
  if (run.num == 0) return;
  traffic_.wait_for(run.peer, 1, Phase::kLayout);
  traffic_.take(run.peer, 1);
  const std::int64_t record_bytes = context_.layout().pair_record_bytes();
  const std::byte* record = context_.own_section(BufferSection::kStageRows) + run.first_passed * record_bytes;
  for (std::int32_t idx = 0; idx < run.num; ++idx, record += record_bytes) {
    TokenRecordHeader header;
    std::memcpy(&header, record, sizeof(header));
    table.tokens.push_back(header.src_token);
    const auto* ids = reinterpret_cast<const std::int32_t*>(record + sizeof(header));
    const auto* weights = reinterpret_cast<const float*>(ids + top_k_);
    table.expert_ids.insert(table.expert_ids.end(), ids, ids + top_k_);
    table.weights.insert(table.weights.end(), weights, weights + top_k_);
  }
}

void RouteExchange::list_pairs(const HostHandle& handle, DomainRoutes& routes) {
  const Domains& domains = traffic_.domains();
  for (int domain = 0; domain < domains.count(); ++domain) {
    const auto idx = static_cast<std::size_t>(domain);
    next_pair_[idx] = handle.sent_pairs[idx].first_sent;
  }
  for (std::vector<std::int32_t>& tokens : routes.sent) tokens.clear();
  routes.pair_of.clear();
  routes.domain_of_pair.clear();
  routes.pair_begin.clear();
  for (std::size_t token = 0; token + 1 < handle.send_begin.size(); ++token) {
    routes.pair_begin.push_back(static_cast<std::int32_t>(routes.pair_of.size()));
    for (int domain = 0; domain < domains.count(); ++domain) {
      const auto begin = handle.sends.begin() + handle.send_begin[token];
      const auto end = handle.sends.begin() + handle.send_begin[token + 1];
      const bool has_row =
          std::any_of(begin, end, [&](const SendEntry& send) { return domains.domain_of(send.dst_rank) == domain; });
      if (!has_row) continue;
      const auto idx = static_cast<std::size_t>(domain);
      routes.pair_of.push_back(static_cast<std::int32_t>(next_pair_[idx]++));
      routes.domain_of_pair.push_back(domain);
      routes.sent[idx].push_back(static_cast<std::int32_t>(token));
    }
  }
  routes.pair_begin.push_back(static_cast<std::int32_t>(routes.pair_of.size()));
}

}  // namespace epistle::host
