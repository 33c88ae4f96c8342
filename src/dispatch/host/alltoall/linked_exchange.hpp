// The all-to-all-v where ranks are on several hosts: nobody can fetch rows of another host, so they are put where they
// are wanted, over links to ranks of other domains and into the memory of those of the own one.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "dispatch/host/alltoall/packed_rows.hpp"
#include "dispatch/host/engine/host_context.hpp"
#include "dispatch/host/engine/token_places.hpp"
#include "dispatch/link/link_traffic.hpp"

namespace epistle::host {

class LinkedExchange {
 public:
  explicit LinkedExchange(HostContext& context);

  [[nodiscard]] std::int64_t sent_bytes() const noexcept { return traffic_.sent_bytes(); }
  /// Over the link that the context has now.
  void renew() noexcept { traffic_.restart(*context_.link); }

  /// Rows for a peer: which of this rank's, and where they begin there.
  struct Route {
    Segment rows;
    std::int64_t target_begin = 0;
  };
  using RouteTo = std::function<Route(int peer)>;
  /// From a section of this rank to one of each peer. Rows are kStageRows' and kStageScales' only: what peers may put
  /// to.
  struct Part {
    BufferSection from = BufferSection::kSendRows;
    BufferSection to = BufferSection::kStageRows;
    std::int64_t row_bytes = 0;
  };
  /// Puts rows on their way to all peers. Between peers of one host they are there when the group has passed a step.
  void put(const Part& part, const RouteTo& route_to);
  /// Tells the peers that have rows from this rank by its puts.
  void tell(const RouteTo& route_to);
  /// Waits for what peers that have rows for this rank have put, and until all of this rank's has been delivered.
  /// `missing_rows`: what the others owe in the call, where it brings rows.
  void wait(const std::function<Segment(int peer)>& rows_from, Phase phase, const MissingRows& missing_rows = {});

  /// Records of all rows to where they are received; `packed_begin`: where this rank packs the rows of each column.
  void exchange_records(const HostHandle& handle, const std::vector<std::int64_t>& packed_begin);

 private:
  [[nodiscard]] bool is_linked(int peer) const noexcept { return !context_.domains().share_one(context_.rank, peer); }
  void unpack_records(const HostHandle& handle);

  HostContext& context_;
  LinkTraffic traffic_;
  TokenPlaces places_;
};

}  // namespace epistle::host
