// What of a dispatcher on the host its parts share: the configuration, the ranks' memory, the workers.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "dispatch/call/resolved_config.hpp"
#include "dispatch/host/engine/host_handle.hpp"
#include "dispatch/host/engine/received_scales.hpp"
#include "dispatch/host/engine/row_kernels.hpp"
#include "dispatch/host/engine/sizes.hpp"
#include "dispatch/host/engine/worker_pool.hpp"
#include "dispatch/link/domain_peers.hpp"
#include "dispatch/link/rank_memory.hpp"
#include "group/group_impl.hpp"
#include "layout/buffer_plan.hpp"

namespace epistle::host {

/// From this many bytes per rank on, a transfer's rows are written past the caches.
[[nodiscard]] std::int64_t streaming_threshold_bytes(int num_ranks);

/// Rows that lie one behind the other, here and there.
struct RowBlock {
  const std::byte* source = nullptr;
  std::byte* target = nullptr;
  std::int64_t num_rows = 0;
  std::int64_t row_bytes = 0;
  std::int64_t source_stride = 0;  ///< bytes from row to row; 0 = row_bytes
  StoreMode mode = StoreMode::kCached;
};

struct HostContext {
  /// Collective.
  HostContext(GroupImpl& group_impl, const ResolvedConfig& resolved, const PlanRules& rules,
              const HostOptions& options);

  [[nodiscard]] const DispatchLayout& layout() const noexcept { return plan.layout(); }
  /// Which buffer each rank uses in the call under way. Where the dispatcher crosses domains, ranks of others are out
  /// of reach: they are told by the link.
  [[nodiscard]] std::byte* section(int peer, BufferSection wanted) const noexcept {
    return memory.section(peer, wanted, buffer_of[static_cast<std::size_t>(peer)]);
  }
  [[nodiscard]] std::byte* own_section(BufferSection wanted) const noexcept { return section(rank, wanted); }
  /// The scales of the rows that `peer` receives in the call under way, with the routing of `handle`.
  [[nodiscard]] ReceivedScales received_scales(int peer, const HostHandle& handle) const noexcept {
    return {section(peer, BufferSection::kReceiveScales), layout().scale_places(handle.tables.output_rows(peer))};
  }
  /// What `peer` says of its buffers in an exchange: the one under way, or the one before.
  [[nodiscard]] PublishedBuffers& published_buffers(int peer, std::uint64_t exchange) const noexcept {
    std::byte* control = memory.section(peer, BufferSection::kControl);
    return *reinterpret_cast<PublishedBuffers*>(control + published_buffers_offset(layout(), exchange));
  }
  /// The rank that serves an entry of a table; the entry must have an expert.
  [[nodiscard]] std::int32_t rank_of_entry(const TokenTable& table, std::size_t entry) const noexcept {
    return rank_of_expert[static_cast<std::size_t>(table.expert_ids[entry])];
  }
  /// An expert output, where `peer` has it in the call under way.
  [[nodiscard]] const std::byte* output_row(int peer, std::int32_t row) const noexcept {
    return section(peer, BufferSection::kCombineRows) + row * layout().params().combine_row_bytes;
  }
  /// Whether a transfer of `num_bytes` should go past the caches.
  [[nodiscard]] StoreMode store_mode(std::int64_t num_bytes) const noexcept {
    return num_bytes >= stream_bytes ? StoreMode::kStreaming : StoreMode::kCached;
  }
  /// Collective: see RankMemory::grow().
  void grow(const std::vector<RowDemand>& demands, const Call& call, Phase phase);
  [[nodiscard]] const Domains& domains() const noexcept { return group->domains(); }
  /// Whether sums of a rank's tokens are rounded once more for every domain.
  [[nodiscard]] bool sums_by_domain() const noexcept {
    return config.order == SumOrder::kDomains && domains().count() > 1;
  }
  /// Copies a block, shared among the workers.
  void copy_block(const RowBlock& block);
  /// Collective: what a change of the group's mask asks for. Everything that the ranks have shared is gone.
  void renew();
  /// Collective: tells the link what of this rank's memory others may put to.
  void expose_landing_places();

  ResolvedConfig config;
  BufferPlan plan;
  GroupImpl* group;
  int rank;
  int num_ranks;
  std::int64_t stream_bytes;
  RankMemory memory;
  std::unique_ptr<DomainLink> link;  ///< to ranks of other domains, where the dispatcher crosses them so
  DomainPeers peers;
  WorkerPool pool;
  std::uint64_t num_exchanges = 0;      ///< of rows or routings published that all ranks have agreed on so far
  std::vector<std::int32_t> buffer_of;  ///< [num_ranks]; for sections that are there once it does not matter
  /// [num_experts of the layout]: slots where experts are placed, the same for every placement. -1 where the rank is
  /// masked out; nothing is routed there.
  std::vector<std::int32_t> rank_of_expert;
  bool has_mask = false;  ///< some rank is

 private:
  void find_ranks_of_experts();
};

}  // namespace epistle::host
