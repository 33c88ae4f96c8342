// What a rank is told of the rows that it receives, and how many there are.
#pragma once

#include <cstdint>
#include <span>

#include "dispatch/call/placed_experts.hpp"
#include "dispatch/host/engine/host_context.hpp"
#include "dispatch/host/engine/host_handle.hpp"
#include "layout/layout_tables.hpp"

namespace epistle::host {

class ReceivedRows {
 public:
  explicit ReceivedRows(const HostContext& context) : context_(&context), layout_(context.layout()) {}

  /// Gives the handle arrays of the right sizes that say that there is nothing, for what is known only when all have
  /// told. `sent`: [num_ranks] pairs of this rank's tokens.
  void open(HostHandle& state, const PlacedExperts& placed, std::span<const std::int32_t> sent) const;
  /// From the counts of all ranks. `has_drops`: what had to be dropped was told, too.
  void read_counts(HostHandle& state, std::span<const ConstCountsView> all_counts, bool has_drops) const;
  /// From the records that the senders have written.
  void read_records(HostHandle& state) const;
  void sum_counts(HostHandle& state) const;

 private:
  [[nodiscard]] int rank() const noexcept { return context_->rank; }
  [[nodiscard]] int num_ranks() const noexcept { return context_->num_ranks; }
  [[nodiscard]] const std::byte* records() const noexcept {
    return context_->memory.section(rank(), BufferSection::kRecords);
  }
  void read_token_records(HostHandle& state) const;
  void read_row_records(HostHandle& state) const;

  const HostContext* context_;
  const DispatchLayout& layout_;
};

}  // namespace epistle::host
