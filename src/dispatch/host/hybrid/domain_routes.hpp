// Who sends what to whom across domains, for one routing: the rank of one index in every domain are each other's peers.
#pragma once

#include <cstdint>
#include <vector>

#include "dispatch/host/engine/host_handle.hpp"

namespace epistle::host {

/// Pairs are those of a token and a domain where at least one of its rows fits. They are numbered domain by domain, in
/// the order of tokens; the numbers of a domain begin where all pairs before it, dropped ones included, would end: both
/// ends know that without asking.
class DomainRoutes final : public MoverState {
 public:
  /// Tokens of the peer of every domain that go to this one, and where: this rank passes them on. The own domain's are
  /// of this rank.
  std::vector<TokenTable> tables;
  /// [num_domains] entries of those tables that have a row.
  std::vector<std::vector<std::int32_t>> received;
  /// [num_domains] this rank's tokens that go to a domain.
  std::vector<std::vector<std::int32_t>> sent;

  std::vector<std::int32_t> pair_of;  ///< the pairs of this rank's tokens, by token, domains ascending
  std::vector<std::int32_t> domain_of_pair;
  std::vector<std::int32_t> pair_begin;  ///< [num_tokens + 1] into `pair_of`
};

}  // namespace epistle::host
