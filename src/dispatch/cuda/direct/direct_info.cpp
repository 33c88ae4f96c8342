#include "dispatch/cuda/direct/direct_info.hpp"

#include "dispatch/call/build_parts.hpp"
#include "dispatch/cuda/direct/run_list.hpp"
#include "dispatch/cuda/engine/sizes.hpp"

namespace epistle::cuda {
namespace {

/// Rows are written and read where they belong; only partial sums are pushed, into a stage at the token's rank.
class DirectRules final : public DeviceRules {
 public:
  [[nodiscard]] SectionBytes content_bytes(const DispatchLayout& layout,
                                           const RowDemand& demand) const noexcept override {
    SectionBytes bytes = DeviceRules::content_bytes(layout, demand);
    const bool pushes_sums = combines_per_rank(layout) && !layout.token_major();
    bytes[BufferSection::kStageRows] = pushes_sums ? demand.send_pairs * layout.params().combine_row_bytes : 0;
    return bytes;
  }
};

/// And what the copy engines pack, where they are asked for: room for rows when they are packed first.
std::vector<MemorySection> direct_memory(const ResolvedConfig& config, const MemoryQuery& query) {
  std::vector<MemorySection> sections = own_memory(config, query);
  if (std::get<CudaOptions>(query.options).mover != CudaMover::kCopyEngines) return sections;
  BufferCarver runs(nullptr);
  RunList list;
  carve_run_list(runs, query.num_ranks, list);
  sections.push_back(fixed_section("runs of tokens", MemoryKind::kPinnedHost, runs.num_bytes()));
  BufferCarver packed(nullptr);
  std::byte* rows = nullptr;
  std::byte* scales = nullptr;
  carve_packed(packed, DispatchLayout(to_layout_params(config, query.num_ranks)), rows, scales);
  sections.push_back({.name = "rows for the copy engines",
                      .kind = MemoryKind::kPrivate,
                      .initial_bytes = 0,
                      .largest_bytes = packed.num_bytes(),
                      .from_allocator = true});
  return sections;
}

Capabilities direct_capabilities() {
  Capabilities can = common_capabilities();
  can.graph_capture = true;
  can.quantises = true;
  can.scale_orders = {ScaleOrder::kRows, ScaleOrder::kColumns};
  can.masks = true;
  can.copy_engines = true;
  can.max_ranks = kMaxRanks;
  can.missing = kLackOfCuda;
  can.needs = {"a GPU of sm_80 or later", "GPUs that reach each other's memory (NVLink, PCIe peer access, or one GPU)"};
  return can;
}

}  // namespace

const PlanRules& direct_rules() {
  static const DirectRules rules;
  return rules;
}

const DispatcherInfo& direct_info() {
  static constexpr DispatcherInfo::Functions kFunctions = {
      .plan = [](const ResolvedConfig& config,
                 int num_ranks) { return plan_buffers(config, {.num_ranks = num_ranks}, direct_rules()); },
      .own_memory = direct_memory,
      .check = check_direct,
      .create = create_direct};
  static const DispatcherInfo info("direct", Device::kCuda,
                                   "each row written once per (token, rank) straight to its final place",
                                   direct_capabilities(), kFunctions);
  return info;
}

}  // namespace epistle::cuda
