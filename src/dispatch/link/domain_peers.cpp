#include "dispatch/link/domain_peers.hpp"

#include <algorithm>

namespace epistle {

DomainPeers::DomainPeers(const GroupImpl& group)
    : domains_(group.domains()), rank_(group.rank()), stand_in_(static_cast<std::size_t>(domains_.num_ranks()), -1) {
  const int size = domains_.size();
  std::vector<std::int32_t> num_stands(stand_in_.size(), 0);
  for (int rank = 0; rank < domains_.num_ranks(); ++rank) {
    const int domain = domains_.domain_of(rank);
    for (int step = 0; step < size; ++step) {
      const int candidate = domains_.rank_at(domain, (domains_.index_of(rank) + step) % size);
      if (group.is_masked(candidate)) continue;
      stand_in_[static_cast<std::size_t>(rank)] = candidate;
      most_sources_ = std::max(most_sources_, ++num_stands[static_cast<std::size_t>(candidate)]);
      break;
    }
  }
  for (int domain = 0; domain < domains_.count(); ++domain) sources_of_.push_back(sources_of(forwarder(rank_, domain)));
}

std::vector<int> DomainPeers::sources_of(int rank) const {
  std::vector<int> sources;
  if (rank < 0) return sources;
  for (int source = 0; source < domains_.num_ranks(); ++source) {
    const bool takes_part = stand_in_[static_cast<std::size_t>(source)] == source;
    if (takes_part && forwarder(source, domains_.domain_of(rank)) == rank) sources.push_back(source);
  }
  return sources;
}

}  // namespace epistle
