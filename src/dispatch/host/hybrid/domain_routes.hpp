// Who sends what to whom across domains, for one routing. Who passes on whose rows is said by DomainPeers; ranks whose
// rows this one passes on are counted as there, itself among them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "dispatch/host/engine/host_context.hpp"
#include "dispatch/host/engine/host_handle.hpp"

namespace epistle::host {

/// Pairs are those of a token and a domain where at least one of its rows fits. They are numbered domain by domain, in
/// the order of tokens; the numbers of a domain begin where all pairs before it, dropped ones included, would end: both
/// ends know that without asking.
class DomainRoutes final : public MoverState {
 public:
  /// [sources] tokens that go to this rank's domain, and where: this rank passes them on.
  std::vector<TokenTable> tables;
  /// [sources] entries of those tables that have a row.
  std::vector<std::vector<std::int32_t>> received;
  /// [num_domains] this rank's tokens that go to a domain.
  std::vector<std::vector<std::int32_t>> sent;

  std::vector<std::int32_t> pair_of;  ///< the pairs of this rank's tokens, by token, domains ascending
  std::vector<std::int32_t> domain_of_pair;
  std::vector<std::int32_t> pair_begin;  ///< [num_tokens + 1] into `pair_of`
};

/// In which order a rank serves those whose rows it passes on: counted round from itself, so that every rank begins
/// with another one.
class SourceOrder {
 public:
  explicit SourceOrder(const HostContext& context) noexcept : count_(context.peers.sources().size()) {
    const std::vector<int>& sources = context.peers.sources();
    own_ = static_cast<std::size_t>(std::find(sources.begin(), sources.end(), context.rank) - sources.begin());
  }

  [[nodiscard]] std::size_t count() const noexcept { return count_; }
  /// The number of this rank among them.
  [[nodiscard]] std::size_t own() const noexcept { return own_; }
  [[nodiscard]] std::size_t behind(std::size_t step) const noexcept { return (own_ + step) % count_; }
  [[nodiscard]] std::size_t before(std::size_t step) const noexcept { return (own_ + count_ - step) % count_; }

 private:
  std::size_t count_;
  std::size_t own_ = 0;
};

}  // namespace epistle::host
