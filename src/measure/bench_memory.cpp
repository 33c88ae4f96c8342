#include "measure/bench_memory.hpp"

#include <algorithm>
#include <cstddef>
#include <limits>
#include <numeric>
#include <string>

#include "dispatch/call/dispatcher_functions.hpp"
#include "dispatch/call/placed_experts.hpp"
#include "dispatch/call/resolved_config.hpp"
#include "dispatch/reference/oracle.hpp"
#include "layout/buffer_plan.hpp"

namespace epistle {
namespace {

constexpr std::int64_t kNumHandles = 2;  // the next one is prepared before the last one goes
constexpr std::int64_t kTableEntryBytes = sizeof(std::int32_t);
constexpr std::int64_t kEntryBytes = sizeof(std::int32_t) + sizeof(float);  // an expert id and its weight

/// What goes to one rank and comes from it.
struct Traffic {
  std::int64_t sent_pairs = 0;  ///< (token, rank)
  std::int64_t received_pairs = 0;
  std::int64_t sent_assignments = 0;  ///< (token, expert)
  std::int64_t received_assignments = 0;
};

std::vector<Traffic> count_traffic(const std::vector<RoutingTable>& tables, const ResolvedConfig& config) {
  const auto num_ranks = static_cast<int>(tables.size());
  const ExpertPartition partition{config.num_columns(num_ranks), num_ranks};
  std::vector<Traffic> traffic(tables.size());
  std::vector<std::int64_t> last_token(tables.size());
  for (std::size_t src = 0; src < tables.size(); ++src) {
    const RoutingTable& table = tables[src];
    PlacedExperts placed;
    if (config.places_experts()) placed = {config.placement, config, num_ranks, static_cast<int>(src)};
    const SlotChooser chooser = placed.chooser(/*step_seed=*/0);
    std::fill(last_token.begin(), last_token.end(), -1);
    std::size_t entry = 0;
    for (std::int64_t token = 0; token < table.num_tokens; ++token) {
      for (std::int32_t position = 0; position < table.top_k; ++position, ++entry) {
        const std::int32_t expert = table.expert_ids[entry];
        if (expert == kNoExpert) continue;
        const std::int32_t column = placed.is_trivial() ? expert : chooser.slot_of(expert, token);
        const auto dst = static_cast<std::size_t>(partition.rank_of(column));
        ++traffic[src].sent_assignments;
        ++traffic[dst].received_assignments;
        if (last_token[dst] == token) continue;
        last_token[dst] = token;
        ++traffic[src].sent_pairs;
        ++traffic[dst].received_pairs;
      }
    }
  }
  return traffic;
}

std::int64_t output_rows(const ResolvedConfig& config, const Traffic& traffic, std::int64_t num_local_experts) {
  switch (config.layout) {
    case OutputLayout::kExpertBlocks:
      return config.capacity_rows * num_local_experts;
    case OutputLayout::kExpertMajor:
      if (config.sizing == SizingMode::kCapacity) return config.capacity_rows;
      return traffic.received_assignments + num_local_experts * (config.alignment - 1);
    case OutputLayout::kTokenMajor:
      break;
  }
  return config.sizing == SizingMode::kCapacity ? config.capacity_rows : traffic.received_pairs;
}

RowDemand demand_of(const BufferPlan& plan, const Traffic& traffic, std::int64_t rows) {
  const LayoutParams& params = plan.layout().params();
  if (params.sizing == SizingMode::kCapacity) return plan.initial_demand();
  const bool per_expert = plan.sends_per_expert();
  return {.tokens = params.max_tokens,
          .output_rows = rows,
          .grad_rows = 0,
          .send_rows = per_expert ? traffic.sent_assignments : traffic.sent_pairs,
          .receive_rows = per_expert ? traffic.received_assignments : traffic.received_pairs,
          .send_pairs = traffic.sent_pairs,
          .receive_pairs = traffic.received_pairs};
}

}  // namespace

std::int64_t estimate_table_bytes(const BenchSpec& spec, const BenchMemoryRequest& request) {
  const std::int64_t num_tokens =
      std::accumulate(request.tokens_per_rank.begin(), request.tokens_per_rank.end(), std::int64_t{0});
  // The oracle keeps a copy of the tables, a place for every entry, and an origin for every row.
  const std::int64_t oracle_bytes = kEntryBytes + static_cast<std::int64_t>(sizeof(std::int32_t));
  // Threads share one set of tables, processes have one each.
  const std::int64_t num_copies = request.group == GroupKind::kProcesses ? request.num_ranks() : 1;
  std::int64_t table_bytes = kEntryBytes + (request.verify ? oracle_bytes : 0);
  for (const std::int64_t factor : {num_tokens, std::int64_t{spec.config.top_k}, num_copies}) {
    if (__builtin_mul_overflow(table_bytes, factor, &table_bytes)) return std::numeric_limits<std::int64_t>::max();
  }
  return table_bytes;
}

std::int64_t estimate_bench_bytes(const BenchSpec& spec, const std::vector<RoutingTable>& tables,
                                  const BenchMemoryRequest& request) {
  const ResolvedConfig config = resolve_config(spec.config, request.num_ranks(), spec.domain_size);
  const std::vector<Traffic> traffic = count_traffic(tables, config);
  const DispatchLayout layout(to_layout_params(config, request.num_ranks()));
  const ExpertPartition partition = layout.partition();
  const LayoutParams& params = layout.params();
  std::int64_t total_bytes = estimate_table_bytes(spec, request);
  std::int64_t total_rows = 0;
  for (int rank = 0; rank < request.num_ranks(); ++rank) {
    const Traffic& own = traffic[static_cast<std::size_t>(rank)];
    const std::int64_t rows = output_rows(config, own, partition.num_local_experts(rank));
    total_rows += rows;
    const std::int64_t row_bytes = params.row_bytes + params.scale_bytes;
    const std::int64_t num_tokens = request.tokens_per_rank[static_cast<std::size_t>(rank)];
    const std::int64_t sum_bytes = num_tokens * params.combine_row_bytes;
    // A handle repeats the routing and describes every row.
    const std::int64_t handle_bytes = own.sent_assignments * kEntryBytes + rows * layout.record_bytes();
    const std::int64_t given_bytes = config.input_row_bytes() + (config.quantises ? 0 : params.scale_bytes);
    total_bytes += num_tokens * given_bytes + sum_bytes * (request.verify ? 2 : 1) + kNumHandles * handle_bytes;
    if (spec.device == Device::kCuda) {
      // Buffers are the GPU's. The host has copies of what a rank received, then of the expert outputs.
      total_bytes += rows * (row_bytes + params.combine_row_bytes);
      continue;
    }
    // Dispatchers come one after the other: the largest counts. Contenders are there together.
    std::int64_t buffer_bytes = 0;
    const auto bytes_of = [&](const std::string& name) {
      const auto& functions = DispatcherInfo::Functions::of(find_dispatcher(name));
      const BufferPlan plan = functions.plan(config, request.num_ranks());
      std::int64_t bytes = plan.buffer_bytes(demand_of(plan, own, rows));
      if (functions.own_memory == nullptr) return bytes;
      for (const MemorySection& section : functions.own_memory(config, {.num_ranks = request.num_ranks()})) {
        bytes += section.largest_bytes;
      }
      return bytes;
    };
    for (const std::string& name : spec.dispatchers) buffer_bytes = std::max(buffer_bytes, bytes_of(name));
    for (const Contender& one : spec.contenders) buffer_bytes += num_buffers_of(one, spec) * bytes_of(one.dispatcher);
    // The copy limit works on as much as a dispatch reads and writes.
    const std::int64_t copied_bytes = (num_tokens + rows) * row_bytes;
    total_bytes += buffer_bytes + copied_bytes + (spec.stage_combine ? rows * params.combine_row_bytes : 0);
  }
  // Every rank's handles hold tables of what each rank sends to each column (rank or expert), and of the pairs of
  // ranks.
  const std::int64_t num_columns =
      config.layout == OutputLayout::kTokenMajor ? request.num_ranks() : config.num_columns(request.num_ranks());
  const std::int64_t num_ranks = request.num_ranks();
  total_bytes += num_ranks * kNumHandles * num_ranks * (2 * num_columns + num_ranks) * kTableEntryBytes;
  if (request.verify) {
    const std::int64_t num_copies = request.group == GroupKind::kProcesses ? request.num_ranks() : 1;
    total_bytes += num_copies * total_rows * static_cast<std::int64_t>(sizeof(reference::OutputRow));
  }
  return total_bytes;
}

}  // namespace epistle
