// `hybrid`: each slow link is crossed once per (token, domain). A rank sends one copy of a row to its peer in every
// domain that has experts of the token: the rank of the same index there (or who takes its place: DomainPeers), which
// passes it on to each rank that needs it. On the way back the peer sums the expert outputs of its domain, and one row
// per (token, domain) returns. In a group of one domain it is the mover of `direct` that does the work.
#pragma once

#include <cstdint>
#include <vector>

#include "dispatch/host/direct/direct.hpp"
#include "dispatch/host/engine/host_context.hpp"
#include "dispatch/host/engine/row_mover.hpp"
#include "dispatch/host/engine/wire_rows.hpp"
#include "dispatch/host/hybrid/domain_routes.hpp"
#include "dispatch/host/hybrid/route_exchange.hpp"
#include "dispatch/link/link_traffic.hpp"

namespace epistle::host {

class HybridMover final : public RowMover {
 public:
  explicit HybridMover(HostContext& context);

  [[nodiscard]] std::int64_t network_bytes() const noexcept override { return traffic_.sent_bytes(); }
  void exchange_records(HostHandle& handle) override { exchange_.run(handle); }
  void reserve(HostHandle& handle) override { exchange_.reserve(handle); }
  void renew() override;
  void send_rows(const MoveJob& job) override;
  void receive_rows(const MoveJob& job) override;
  void send_sums(const SumRequest& /*request*/) override {}
  void receive_sums(const SumRequest& request) override;
  void apply_row_weights(const RowWeightJob& job) override { host::apply_row_weights(context_, job); }

 private:
  [[nodiscard]] static const DomainRoutes& routes_of(const HostHandle& handle) noexcept {
    return static_cast<const DomainRoutes&>(*handle.mover_state);
  }
  [[nodiscard]] Chunks chunks_to_forward(const MoveJob& job, std::size_t source) const noexcept;
  void send_chunk(const MoveJob& job, int domain, const Chunk& chunk);
  void forward_arrived(const MoveJob& job, std::size_t source);
  void note_arrivals(std::size_t source, int peer);
  void forward(const MoveJob& job, std::size_t source, const Chunk& chunk);

  /// Sums of a source's pairs, by the number of the pair in `rows`; likewise their gradients in `gradients`.
  struct PairSums {
    BufferSection rows;
    BufferSection gradients;
    std::int64_t first_pair;
  };
  void sum_pairs(const SumRequest& request, std::size_t source, const Chunk& chunk, const PairSums& target);
  void return_sums(const SumRequest& request, std::size_t source);
  void sum_domains(const SumRequest& request);
  void place_gradients(const SumRequest& request) const;

  HostContext& context_;
  DirectMover direct_;
  LinkTraffic traffic_;
  RouteExchange exchange_;
  std::vector<std::int64_t> num_forwarded_;  ///< [sources] chunks of the dispatch under way
  std::vector<std::int64_t> num_seen_;       ///< [sources] of them, for a timeline: that were seen to be here
};

}  // namespace epistle::host
