// The part of Preparation that knows of domains: how many tokens of every rank go to each, and who passes them on.
#include <algorithm>

#include "dispatch/host/engine/preparation.hpp"

namespace epistle::host {

/// Tokens of this rank that have an expert in each domain.
void Preparation::count_domain_pairs(const HostHandle& state, std::int32_t* pairs) const {
  const Domains& domains = context_->domains();
  const auto top_k = static_cast<std::size_t>(config_.top_k);
  std::fill_n(pairs, domains.count(), 0);
  for (std::size_t first = 0; first < state.expert_ids.size(); first += top_k) {
    for (std::size_t entry = first; entry < first + top_k; ++entry) {
      const auto domain_at = [&](std::size_t at) {
        return state.expert_ids[at] == kNoExpert ? -1 : domains.domain_of(context_->rank_of_entry(state, at));
      };
      const int domain = domain_at(entry);
      bool is_new = domain >= 0;
      for (std::size_t before = first; before < entry && is_new; ++before) is_new = domain_at(before) != domain;
      if (is_new) ++pairs[domain];
    }
  }
}

/// As that rank has announced them; none of a rank that is masked out.
std::int32_t Preparation::domain_pairs_of(int source, int domain) const noexcept {
  const std::size_t entries = own_announcement_.size();
  const std::size_t end = static_cast<std::size_t>(source) * entries + entries;
  return all_announcements_[end - static_cast<std::size_t>(context_->domains().count() - domain)];
}

/// Where the pairs of this rank lie, and those that it passes on, on either side: every rank knows the numbers of all.
void Preparation::keep_domain_pairs(HostHandle& state) {
  const DomainPeers& peers = context_->peers;
  const int num_domains = context_->domains().count();
  std::fill(passed_on_.begin(), passed_on_.end(), 0);
  for (int source = 0; source < num_ranks(); ++source) {
    if (context_->group->is_masked(source)) continue;
    for (int domain = 0; domain < num_domains; ++domain) {
      const int forwarder = peers.forwarder(source, domain);
      if (forwarder >= 0) passed_on_[static_cast<std::size_t>(forwarder)] += domain_pairs_of(source, domain);
    }
  }
  state.sent_pairs.clear();
  for (int domain = 0; domain < num_domains; ++domain) state.sent_pairs.push_back(sent_run(domain));
  list_passed_runs(state.passed_pairs);
}

PairRun Preparation::sent_run(int domain) const {
  const DomainPeers& peers = context_->peers;
  PairRun run{.peer = peers.forwarder(rank(), domain), .num = domain_pairs_of(rank(), domain)};
  for (int before = 0; before < domain; ++before) run.first_sent += domain_pairs_of(rank(), before);
  for (const int source : peers.sources_at(domain)) {
    if (source < rank()) run.first_passed += domain_pairs_of(source, domain);
  }
  return run;
}

void Preparation::list_passed_runs(std::vector<PairRun>& runs) const {
  const int own = context_->domains().domain_of(rank());
  runs.clear();
  std::int64_t first_passed = 0;
  for (const int source : context_->peers.sources()) {
    PairRun run{.peer = source, .num = domain_pairs_of(source, own), .first_passed = first_passed};
    for (int before = 0; before < own; ++before) run.first_sent += domain_pairs_of(source, before);
    first_passed += run.num;
    runs.push_back(run);
  }
}

}  // namespace epistle::host
