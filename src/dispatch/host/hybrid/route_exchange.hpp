// prepare across domains: records of (token, domain) pairs go to who passes them on there, which gives their rows the
// places that the token's own rank has given them, and tells the receivers.
#pragma once

#include <cstdint>
#include <vector>

#include "dispatch/host/engine/token_places.hpp"
#include "dispatch/host/hybrid/domain_routes.hpp"
#include "dispatch/link/link_traffic.hpp"

namespace epistle::host {

class RouteExchange {
 public:
  RouteExchange(HostContext& context, LinkTraffic& traffic);

  /// Makes room, once the counts are known.
  void reserve(HostHandle& handle) const;
  /// Fills in the routes of a handle. Records are in place when all ranks have come back.
  void run(HostHandle& handle);

 private:
  void send_records(const HostHandle& handle);
  void pack_records(const HostHandle& handle, int domain, std::int64_t first_record);
  void keep_own(const HostHandle& handle, TokenTable& table) const;
  void receive_records(const PairRun& run, TokenTable& table);
  void list_pairs(const HostHandle& handle, DomainRoutes& routes);
  /// Whether a token has an expert in a domain.
  [[nodiscard]] bool goes_to(const HostHandle& handle, std::size_t token, int domain) const noexcept;
  [[nodiscard]] std::int32_t id_in_domain(const HostHandle& handle, std::size_t entry, int domain) const noexcept;

  HostContext& context_;
  LinkTraffic& traffic_;
  TokenPlaces places_;
  std::size_t top_k_;
  std::vector<std::int32_t> pairs_to_rank_;      ///< scratch
  std::vector<std::int32_t> dropped_of_expert_;  ///< scratch
  std::vector<std::int64_t> next_pair_;          ///< [num_domains] scratch
};

}  // namespace epistle::host
