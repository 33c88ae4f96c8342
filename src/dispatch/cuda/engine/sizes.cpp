#include "dispatch/cuda/engine/sizes.hpp"

#include <algorithm>

namespace epistle::cuda {

int count_blocks_for(const DeviceShape& shape) noexcept {
  constexpr int kMaxCountPlaces = 128;
  return std::clamp(std::min(kMaxCountPlaces / shape.num_ranks, shape.sm_share), 1, kMaxPrepareBlocks);
}

DeviceControl control_of(const ResolvedConfig& config, const DeviceShape& shape) noexcept {
  return {.num_ranks = shape.num_ranks,
          .num_experts = config.num_columns(shape.num_ranks),
          .top_k = config.top_k,
          .max_tokens = config.max_tokens,
          .count_blocks = count_blocks_for(shape)};
}

FewTokens few_tokens_of(const ResolvedConfig& config, const DeviceShape& shape) noexcept {
  if (!DispatchLayout(to_layout_params(config, shape.num_ranks)).token_major()) return {};
  return FewTokens::behind(control_of(config, shape));
}

bool DeviceRules::combines_per_rank(const DispatchLayout& layout) const noexcept {
  return layout.can_combine_per_rank();
}

SectionBytes DeviceRules::content_bytes(const DispatchLayout& layout, const RowDemand& demand) const noexcept {
  SectionBytes bytes = PlanRules::content_bytes(layout, demand);
  bytes[BufferSection::kRecords] = demand.receive_pairs * layout.pair_record_bytes();
  return bytes;
}

RowDemand DeviceRules::max_demand(const DispatchLayout& layout) const noexcept {
  RowDemand demand = PlanRules::max_demand(layout);
  demand.send_pairs = layout.params().max_tokens * layout.max_other_ranks_per_token();
  return demand;
}

RowDemand DeviceRules::initial_demand(const DispatchLayout& layout) const noexcept {
  RowDemand demand = PlanRules::initial_demand(layout);
  // Peers write records before the host has seen any count, so there is room for all of them from the start.
  demand.receive_pairs = max_demand(layout).receive_pairs;
  return demand;
}

BufferPlan plan_buffers(const ResolvedConfig& config, const DeviceShape& shape, const PlanRules& rules) {
  return {rules,
          to_layout_params(config, shape.num_ranks),
          {.control_bytes = control_of(config, shape).num_bytes() + few_tokens_of(config, shape).num_bytes(),
           .page_bytes = shape.page_bytes}};
}

void carve_handle(BufferCarver& carver, const DispatchLayout& layout, HandleArrays& arrays) noexcept {
  const LayoutParams& params = layout.params();
  const std::int64_t tokens = params.max_tokens;
  const std::int64_t top_k = params.top_k;
  const std::int64_t sends = layout.max_ranks_per_token();
  const std::int64_t rows = layout.max_output_rows();
  const bool token_major = layout.token_major();
  const std::int64_t num_records = token_major ? 0 : params.max_tokens * params.num_ranks;
  const std::int64_t experts = layout.partition().max_local_experts();
  carver.take(arrays.expert_ids, tokens * top_k);
  carver.take(arrays.weights, tokens * top_k);
  carver.take(arrays.dst_row, tokens * top_k);
  carver.take(arrays.sends, tokens * sends);
  carver.take(arrays.send_weights, tokens * sends);
  carver.take(arrays.totals, 1);
  carver.take(arrays.pair_records, num_records * layout.pair_record_bytes());
  carver.take(arrays.src_rank, rows);
  carver.take(arrays.src_token, rows);
  carver.take(arrays.local_expert_ids, token_major ? rows * top_k : 0);
  carver.take(arrays.row_expert, token_major ? 0 : rows);
  carver.take(arrays.row_weights, rows * layout.weights_per_row());
  carver.take(arrays.expert_counts, experts);
  carver.take(arrays.expert_begin, experts + 1);
  carver.take(arrays.expert_dropped, experts);
  carver.take(arrays.counts, std::int64_t{params.num_ranks} * (params.num_ranks + params.num_experts));
  carver.take(arrays.clean_rows, experts);
  std::byte* summary = nullptr;
  carver.take(summary, summary_bytes(layout));
  arrays.summary = reinterpret_cast<Summary*>(summary);
  arrays.top_k = params.top_k;
  arrays.sends_per_token = static_cast<std::int32_t>(sends);
}

void carve_placement(BufferCarver& carver, const ResolvedConfig& config, int num_ranks, SlotTables& tables) noexcept {
  if (!config.places_experts()) return;
  const std::int64_t num_columns = config.num_columns(num_ranks);
  carver.take(tables.policy, 1);
  carver.take(tables.replica_begin, std::int64_t{config.num_experts} + 1);
  carver.take(tables.entries, num_columns);
  carver.take(tables.expert_of_slot, num_columns);
}

void carve_quantised(BufferCarver& carver, const ResolvedConfig& config, std::byte*& rows,
                     std::byte*& scales) noexcept {
  if (!config.quantises) return;
  carver.take(rows, config.max_tokens * config.hidden);
  carver.take(scales, config.max_tokens * fp8::scale_row_bytes(config.hidden, config.scale_format()));
}

std::int64_t summary_bytes(const DispatchLayout& layout) noexcept {
  const std::int64_t ranks = layout.params().num_ranks;
  const std::int64_t num_words = ranks * ranks + 2 * ranks + layout.partition().max_local_experts();
  return static_cast<std::int64_t>(sizeof(Summary)) + num_words * static_cast<std::int64_t>(sizeof(std::int32_t));
}

std::int64_t told_bytes(const DispatchLayout& layout) noexcept {
  constexpr std::int64_t kCacheLine = 64;
  return (kProbeBytes + summary_bytes(layout) + kCacheLine - 1) / kCacheLine * kCacheLine;
}

void carve_local(BufferCarver& carver, const ResolvedConfig& config, int num_ranks, DeviceGroup& group) noexcept {
  carver.take(group.local, 1);
  carver.take(group.outcome, num_ranks + config.num_columns(num_ranks));
}

MemorySection fixed_section(std::string_view name, MemoryKind kind, std::int64_t num_bytes) noexcept {
  return {.name = name,
          .kind = kind,
          .initial_bytes = num_bytes,
          .largest_bytes = num_bytes,
          .from_allocator = kind == MemoryKind::kPrivate};
}

std::vector<MemorySection> own_memory(const ResolvedConfig& config, const MemoryQuery& query) {
  const int num_ranks = query.num_ranks;
  BufferCarver handle(nullptr);
  HandleArrays arrays;
  const DispatchLayout layout(to_layout_params(config, num_ranks));
  carve_handle(handle, layout, arrays);
  const std::int64_t told = static_cast<std::int64_t>(sizeof(HostControl)) + told_bytes(layout) * config.max_handles;
  BufferCarver local(nullptr);
  DeviceGroup group;
  carve_local(local, config, num_ranks, group);
  BufferCarver placement(nullptr);
  SlotTables tables;
  carve_placement(placement, config, num_ranks, tables);
  const std::int64_t counter_bytes = config.num_experts * static_cast<std::int64_t>(sizeof(std::int64_t));
  std::vector<MemorySection> sections = {
      fixed_section("handles", MemoryKind::kPrivate, handle.num_bytes() * config.max_handles),
      fixed_section("summaries", MemoryKind::kPinnedHost, told),
      fixed_section("calls", MemoryKind::kPrivate, local.num_bytes()),
      // The tables, and of every expert the tokens that came and those that were lost. On the host there is room for
      // the tables and for one of the two.
      fixed_section("experts", MemoryKind::kPrivate, placement.num_bytes() + 2 * counter_bytes),
      fixed_section("experts", MemoryKind::kPinnedHost, placement.num_bytes() + counter_bytes)};
  if (config.quantises) {
    BufferCarver quantised(nullptr);
    std::byte* rows = nullptr;
    std::byte* scales = nullptr;
    carve_quantised(quantised, config, rows, scales);
    sections.push_back(fixed_section("quantised rows", MemoryKind::kPrivate, quantised.num_bytes()));
  }
  return sections;
}

// ---- Several hosts --------------------------------------------------------------------------------------------------

namespace {

/// Records on their way, and beside them what became of the rows of every rank. A record lands at its place among all
/// that the rank receives.
class RelayRules final : public PlanRules {
 public:
  [[nodiscard]] SectionBytes content_bytes(const DispatchLayout& layout,
                                           const RowDemand& demand) const noexcept override {
    const LayoutParams& params = layout.params();
    const DeviceControl control{.num_ranks = params.num_ranks, .num_experts = params.num_experts};
    const std::int64_t outcome_bytes =
        std::int64_t{params.num_ranks} * control.outcome_entries() * static_cast<std::int64_t>(sizeof(std::int32_t));
    SectionBytes bytes;
    bytes[BufferSection::kSendRows] = demand.send_pairs * layout.pair_record_bytes();
    bytes[BufferSection::kStageRows] = demand.receive_pairs * layout.pair_record_bytes();
    bytes[BufferSection::kSendScales] = outcome_bytes;
    bytes[BufferSection::kStageScales] = outcome_bytes;
    return bytes;
  }
  [[nodiscard]] RowDemand max_demand(const DispatchLayout& layout) const noexcept override {
    const LayoutParams& params = layout.params();
    return {.send_pairs = params.max_tokens * layout.max_other_ranks_per_token(),
            .receive_pairs = params.max_tokens * params.num_ranks};
  }
  /// Records come before the host has seen any count of rows.
  [[nodiscard]] RowDemand initial_demand(const DispatchLayout& layout) const noexcept override {
    return max_demand(layout);
  }
};

/// Of one rank's piece of memory.
std::int64_t mirrored_bytes(const BufferPlan& plan, const RowDemand& demand) noexcept {
  const SectionBytes all = plan.section_bytes(demand);
  std::int64_t bytes = 0;
  for (const BufferSection section : kBufferSections) {
    if (is_mirrored(plan, section)) bytes += all[section] * plan.section_copies(section);
  }
  return bytes;
}

}  // namespace

bool is_mirrored(const BufferPlan& plan, BufferSection section) noexcept {
  if (section == BufferSection::kGradWeights) return !plan.crosses_domains();
  return section == BufferSection::kControl || section == BufferSection::kRecords;
}

void carve_relay_words(BufferCarver& carver, const DeviceControl& control, RelayWords& words) noexcept {
  carver.take(words.completed, 1);
  carver.take(words.prepared, 1);
  carver.take(words.ready, control.num_ranks);
  carver.take(words.done, control.num_ranks);
  carver.take(words.counts, std::int64_t{control.num_ranks} * control.count_blocks * control.count_columns());
}

BufferPlan plan_relay(const DispatchLayout& layout) {
  static const RelayRules rules;
  return {rules, layout.params(), {}};
}

std::int64_t relay_counter_bytes(const ResolvedConfig& config) noexcept {
  return config.num_experts * static_cast<std::int64_t>(sizeof(unsigned long long));
}

std::vector<MemorySection> relay_memory(const ResolvedConfig& config, const MemoryQuery& query,
                                        const PlanRules& rules) {
  if (query.num_hosts == 1) return {};
  const DeviceShape shape{.num_ranks = query.num_ranks};
  const BufferPlan plan = plan_buffers(config, shape, rules);
  const std::int64_t ranks_elsewhere = query.num_ranks - query.num_ranks / query.num_hosts;
  BufferCarver carver(nullptr);
  RelayWords words;
  carve_relay_words(carver, control_of(config, shape), words);
  const BufferPlan relay = plan_relay(plan.layout());
  return {{.name = "mirrors of other hosts",
           .kind = MemoryKind::kPrivate,
           .initial_bytes = ranks_elsewhere * mirrored_bytes(plan, plan.initial_demand()),
           .largest_bytes = ranks_elsewhere * mirrored_bytes(plan, plan.max_demand())},
          fixed_section("counters of other runs", MemoryKind::kPrivate, relay_counter_bytes(config)),
          fixed_section("words for other hosts", MemoryKind::kPinnedHost, carver.num_bytes()),
          fixed_section("records for other hosts", MemoryKind::kPinnedHost, relay.buffer_bytes(relay.max_demand()))};
}

}  // namespace epistle::cuda
