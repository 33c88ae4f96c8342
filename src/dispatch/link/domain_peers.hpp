// Who passes on whose rows between domains. In every domain it is the rank of the sender's index; where that one is
// masked out, the next one behind it that is not, counted round. So a rank may pass on the rows of several ranks of
// another domain, and a pair is lost only where the expert's own rank is masked out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "group/group_impl.hpp"

namespace epistle {

class DomainPeers {
 public:
  /// Those of this rank, under the mask that is in force.
  explicit DomainPeers(const GroupImpl& group);

  [[nodiscard]] const Domains& domains() const noexcept { return domains_; }

  /// The rank of `domain` that passes on what `source` sends there: `source` itself in its own domain. -1 where all of
  /// the domain are masked out: nothing is sent there.
  [[nodiscard]] int forwarder(int source, int domain) const noexcept {
    if (domains_.domain_of(source) == domain) return source;
    return stand_in_[static_cast<std::size_t>(domains_.rank_at(domain, domains_.index_of(source)))];
  }

  /// Whose rows this rank passes on, ascending, itself among them.
  [[nodiscard]] const std::vector<int>& sources() const noexcept { return sources_of_[own_domain()]; }
  /// Whose rows the rank of `domain` passes on that passes on this rank's; likewise.
  [[nodiscard]] const std::vector<int>& sources_at(int domain) const noexcept {
    return sources_of_[static_cast<std::size_t>(domain)];
  }

  /// The most ranks of one domain whose rows one rank passes on.
  [[nodiscard]] std::int32_t most_sources_of_domain() const noexcept { return most_sources_; }

 private:
  [[nodiscard]] std::vector<int> sources_of(int rank) const;
  [[nodiscard]] std::size_t own_domain() const noexcept { return static_cast<std::size_t>(domains_.domain_of(rank_)); }

  Domains domains_;
  int rank_;
  std::vector<int> stand_in_;  ///< [num_ranks] the rank itself, or who takes its place; -1 = nobody
  std::int32_t most_sources_ = 1;
  std::vector<std::vector<int>> sources_of_;  ///< [num_domains]
};

}  // namespace epistle
