#include "dispatch/cuda/alltoall/alltoall_info.hpp"

#include <algorithm>

#include "dispatch/call/build_parts.hpp"
#include "dispatch/cuda/alltoall/exchange_plan.hpp"
#include "dispatch/cuda/engine/cuda_options.hpp"
#include "dispatch/cuda/engine/sizes.hpp"

namespace epistle::cuda {
namespace {

/// A packed send buffer and a stage for what an exchange delivers, pairs or entries.
class AllToAllRules final : public DeviceRules {
 public:
  [[nodiscard]] SectionBytes content_bytes(const DispatchLayout& layout,
                                           const RowDemand& demand) const noexcept override {
    const LayoutParams& params = layout.params();
    // Token rows are received where they belong, and go back as they lie.
    const std::int64_t expanded_rows = layout.token_major() ? 0 : demand.receive_rows;
    const std::int64_t summed_rows = combines_per_rank(layout) ? demand.send_pairs : demand.send_rows;
    SectionBytes bytes = DeviceRules::content_bytes(layout, demand);
    bytes[BufferSection::kSendRows] =
        std::max(demand.send_pairs * layout.widest_row_bytes(), expanded_rows * params.combine_row_bytes);
    bytes[BufferSection::kSendScales] = demand.send_pairs * params.scale_bytes;
    bytes[BufferSection::kStageRows] =
        std::max(expanded_rows * layout.widest_row_bytes(), summed_rows * params.combine_row_bytes);
    bytes[BufferSection::kStageScales] = expanded_rows * params.scale_bytes;
    return bytes;
  }
  /// Where combine returns one row per (token, expert), send_rows are those that other ranks send back, and
  /// receive_rows places in what this rank receives, or what it returns, whichever is more.
  [[nodiscard]] RowDemand max_demand(const DispatchLayout& layout) const noexcept override {
    RowDemand demand = DeviceRules::max_demand(layout);
    if (combines_per_rank(layout)) return demand;
    const LayoutParams& params = layout.params();
    demand.send_rows = params.num_ranks > 1 ? params.max_tokens * params.top_k : 0;
    demand.receive_rows = params.max_tokens * params.num_ranks * layout.max_rows_per_token();
    return demand;
  }
};

Capabilities alltoall_capabilities() {
  Capabilities can = common_capabilities();
  can.agrees_on_host = true;
  can.joins_hosts = true;
  can.one_rank_per_gpu = true;
  can.max_ranks = kMaxRanks;
  can.missing = kLackOfNccl;
  can.needs = {"NCCL 2.18 or later (libnccl.so.2, or EPISTLE_NCCL_LIBRARY)", "a GPU for every rank"};
  return can;
}

/// And what is known of exchanges, on either side.
std::vector<MemorySection> alltoall_memory(const ResolvedConfig& config, const MemoryQuery& query) {
  std::vector<MemorySection> sections = own_memory(config, query);
  sections.push_back(fixed_section("exchanges", MemoryKind::kPinnedHost,
                                   static_cast<std::int64_t>(sizeof(HandleTotals) + sizeof(nccl::EntryCounts))));
  const DispatchLayout layout(to_layout_params(config, query.num_ranks));
  if (!alltoall_rules().combines_per_rank(layout)) {
    BufferCarver carver(nullptr);
    nccl::EntryTables tables;
    nccl::carve_entries(carver, layout, tables);
    sections.push_back(fixed_section("exchanges", MemoryKind::kPrivate, carver.num_bytes()));
  }
  for (const MemorySection& section : relay_memory(config, query, alltoall_rules())) sections.push_back(section);
  return sections;
}

}  // namespace

const PlanRules& alltoall_rules() {
  static const AllToAllRules rules;
  return rules;
}

const DispatcherInfo& alltoall_info() {
  static constexpr DispatcherInfo::Functions kFunctions = {
      .plan = [](const ResolvedConfig& config,
                 int num_ranks) { return plan_buffers(config, {.num_ranks = num_ranks}, alltoall_rules()); },
      .own_memory = alltoall_memory,
      .check = check_cuda_options,
      .create = create_alltoall};
  static const DispatcherInfo info("alltoall", Device::kCuda,
                                   "permute, one all-to-all-v over NCCL, unpermute; a GPU for every rank",
                                   alltoall_capabilities(), kFunctions);
  return info;
}

}  // namespace epistle::cuda
