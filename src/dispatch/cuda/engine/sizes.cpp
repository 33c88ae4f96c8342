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
  carver.take(summary, summary_bytes(params.num_ranks));
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

std::int64_t summary_bytes(int num_ranks) noexcept {
  const std::int64_t ranks = num_ranks;
  return static_cast<std::int64_t>(sizeof(Summary)) +
         (ranks * ranks + 2 * ranks) * static_cast<std::int64_t>(sizeof(std::int32_t));
}

std::int64_t told_bytes(int num_ranks) noexcept {
  constexpr std::int64_t kCacheLine = 64;
  return (kProbeBytes + summary_bytes(num_ranks) + kCacheLine - 1) / kCacheLine * kCacheLine;
}

std::vector<MemorySection> own_memory(const ResolvedConfig& config, int num_ranks) {
  BufferCarver carver(nullptr);
  HandleArrays arrays;
  carve_handle(carver, DispatchLayout(to_layout_params(config, num_ranks)), arrays);
  const std::int64_t handle_bytes = carver.num_bytes() * config.max_handles;
  const std::int64_t pinned_bytes =
      static_cast<std::int64_t>(sizeof(HostControl)) + told_bytes(num_ranks) * config.max_handles;
  BufferCarver quantised(nullptr);
  std::byte* rows = nullptr;
  std::byte* scales = nullptr;
  carve_quantised(quantised, config, rows, scales);
  std::vector<MemorySection> sections = {
      {.name = "handles", .kind = MemoryKind::kPrivate, .initial_bytes = handle_bytes, .largest_bytes = handle_bytes},
      {.name = "summaries",
       .kind = MemoryKind::kPinnedHost,
       .initial_bytes = pinned_bytes,
       .largest_bytes = pinned_bytes}};
  BufferCarver placement(nullptr);
  SlotTables tables;
  carve_placement(placement, config, num_ranks, tables);
  const std::int64_t counter_bytes = config.num_experts * static_cast<std::int64_t>(sizeof(std::int64_t));
  // The tables, and of every expert the tokens that came and those that were lost. On the host there is room for the
  // tables and for one of the two.
  const auto add = [&](MemoryKind kind, std::int64_t num_bytes) {
    sections.push_back({.name = "experts", .kind = kind, .initial_bytes = num_bytes, .largest_bytes = num_bytes});
  };
  add(MemoryKind::kPrivate, placement.num_bytes() + 2 * counter_bytes);
  add(MemoryKind::kPinnedHost, placement.num_bytes() + counter_bytes);
  if (config.quantises) {
    sections.push_back({.name = "quantised rows",
                        .kind = MemoryKind::kPrivate,
                        .initial_bytes = quantised.num_bytes(),
                        .largest_bytes = quantised.num_bytes()});
  }
  return sections;
}

}  // namespace epistle::cuda
