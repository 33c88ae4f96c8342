// Routing that every rank lays out for the others: a receiver derives its rows from it, and nobody has to tell it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "dispatch/host/engine/host_context.hpp"
#include "dispatch/host/engine/host_handle.hpp"
#include "dispatch/host/engine/published_places.hpp"
#include "layout/layout_tables.hpp"

namespace epistle::host {

class PublishedRouting {
 public:
  explicit PublishedRouting(HostContext& context);

  /// Lays out the routing of a handle that was read, in the set of its exchange.
  void publish(const HostHandle& state);

  /// Takes the places of an exchange back from who has read them.
  void take_back(std::uint64_t exchange, std::size_t num_entries) const noexcept;

  /// Asks for what `peer` has laid out for the exchange of `state`; it is guessed to have as many tokens as this rank.
  void ask_for(int peer, const HostHandle& state) const noexcept;

  /// From the routings of all ranks, once all have agreed and the handle's tables are computed: describes this rank's
  /// rows, and counts pairs and drops. `counts` are those of the first round, by rank. The handle's arrays have their
  /// sizes, and say that there is nothing.
  void derive(HostHandle& state, std::span<const ConstCountsView> counts);

 private:
  /// The routing of one rank.
  struct Source {
    int rank;
    std::int64_t num_tokens;
    const std::int32_t* ids;
    const float* weights;
  };
  [[nodiscard]] Source source_of(int rank, std::uint64_t exchange, std::int64_t num_tokens) const noexcept;
  void derive_token_rows(const Source& source, HostHandle& state) const;
  void derive_expert_rows(const Source& source, HostHandle& state);
  /// Assignments of `source` to experts of `dst_rank` whose token rows have no place there.
  [[nodiscard]] std::int64_t dropped_assignments(const Source& source, int dst_rank, std::int64_t num_kept) const;

  HostContext* context_;
  PublishedPlaces places_;
  std::size_t top_k_;
  std::int32_t first_expert_;
  std::uint32_t num_local_;
  std::vector<std::int32_t> num_placed_;  ///< [num_local_experts] scratch: rows of one source so far
};

}  // namespace epistle::host
