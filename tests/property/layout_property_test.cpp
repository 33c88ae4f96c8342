// LayoutTables against the oracle, and what the layout promises of buffers, on random routings.
#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include <rapidcheck.h>

#include <gtest/gtest.h>

#include "dispatch/call/dispatcher_functions.hpp"
#include "dispatch/call/resolved_config.hpp"
#include "dispatch/reference/oracle.hpp"
#include "layout/buffer_plan.hpp"
#include "layout/layout_tables.hpp"
#include "support/checker.hpp"
#include "support/property.hpp"
#include "support/sanitizers.hpp"
#include "support/scenario_text.hpp"

namespace epistle::testing {
namespace {

constexpr int kNumLayouts = kInstrumented ? 300 : 2000;

Scenario any_routing() {
  Scenario scenario;
  DispatcherConfig& config = scenario.config;
  const int num_ranks = *rc::gen::inRange(1, 12);
  config.hidden = 16;
  config.input = *rc::gen::element(DType::kFp8E4m3, DType::kFp32);
  config.num_experts = *rc::gen::inRange<std::int32_t>(1, 40);
  config.top_k = *rc::gen::inRange<std::int32_t>(1, std::min(10, config.num_experts) + 1);
  config.order = *rc::gen::element(SumOrder::kHierarchical, SumOrder::kFlat, SumOrder::kDeepEpV2);
  config.overflow = OverflowPolicy::kDrop;
  for (int rank = 0; rank < num_ranks; ++rank) {
    scenario.tokens_per_rank.push_back(*rc::gen::inRange<std::int64_t>(0, 20));
    config.max_tokens = std::max(config.max_tokens, scenario.tokens_per_rank.back());
  }
  set_layout(config,
             *rc::gen::element(OutputLayout::kTokenMajor, OutputLayout::kExpertMajor, OutputLayout::kExpertBlocks),
             *rc::gen::element(SizingMode::kExact, SizingMode::kCapacity), *rc::gen::inRange<std::int64_t>(1, 120),
             *rc::gen::element(1, 3, 8));
  config.num_buffers = *rc::gen::inRange(1, 4);
  scenario.seed = *rc::gen::arbitrary<std::uint64_t>();
  scenario.missing_probability = *rc::gen::element(0.0, 0.3);
  scenario.hot_experts = *rc::gen::arbitrary<bool>();
  return scenario;
}

const DispatcherInfo& any_dispatcher() {
  const DispatcherInfo& info = *dispatchers()[*rc::gen::inRange<std::size_t>(0, dispatchers().size())];
  RC_LOG() << info.name() << " on " << to_string(info.device()) << std::endl;
  return info;
}

BufferPlan plan_of(const DispatcherInfo& info, const ResolvedConfig& config, int num_ranks) {
  return DispatcherInfo::Functions::of(info).plan(config, num_ranks);
}

/// What every rank announces, counted from its table.
struct Counts {
  Counts(const Round& round, const LayoutParams& params) {
    const DispatchLayout layout(params);
    entries.resize(static_cast<std::size_t>(params.num_ranks));
    for (std::int32_t rank = 0; rank < params.num_ranks; ++rank) {
      auto& own = entries[static_cast<std::size_t>(rank)];
      own.resize(static_cast<std::size_t>(layout.counts_entries()));
      const auto view = counts_view(params, own.data());
      const RoutingTable& table = round.table(rank);
      for (std::int64_t token = 0; token < table.num_tokens; ++token) {
        std::vector<bool> seen(static_cast<std::size_t>(params.num_ranks));
        for (std::int64_t idx = token * table.top_k; idx < (token + 1) * table.top_k; ++idx) {
          const std::int32_t expert = table.expert_ids[static_cast<std::size_t>(idx)];
          if (expert == kNoExpert) continue;
          ++view.rows_to_expert[static_cast<std::size_t>(expert)];
          const auto dst = static_cast<std::size_t>(layout.partition().rank_of(expert));
          if (!seen[dst]) ++view.tokens_to_rank[dst];
          seen[dst] = true;
        }
      }
      views.push_back(counts_view<const std::int32_t>(params, own.data()));
    }
  }

  std::vector<std::vector<std::int32_t>> entries;
  std::vector<ConstCountsView> views;
};

/// The column (destination rank, or expert) that an output row of `rank` belongs to.
int column_of(const Round& round, int rank, const reference::OutputRow& row) {
  if (round.config().layout == OutputLayout::kTokenMajor) return rank;
  const RoutingTable& table = round.table(row.src_rank);
  return table.expert_ids[static_cast<std::size_t>(row.src_token * table.top_k + row.topk_idx)];
}

TEST(LayoutProperty, TablesAreThoseOfTheOracle) {
  check_property(kNumLayouts, [] {
    const Scenario scenario = any_routing();
    RC_LOG() << to_text(scenario) << std::endl;
    const Round round(scenario, 0);
    const auto num_ranks = static_cast<std::int32_t>(scenario.tokens_per_rank.size());
    const LayoutParams params = to_layout_params(round.config(), num_ranks);
    const DispatchLayout layout(params);
    const Checker checker(round);
    LayoutTables tables;
    tables.compute(layout, Counts(round, params).views);

    std::int64_t overflow = 0;
    std::vector<std::int32_t> found(static_cast<std::size_t>(num_ranks) *
                                    static_cast<std::size_t>(tables.num_columns()));
    for (int rank = 0; rank < num_ranks; ++rank) {
      const reference::RankLayout& expected = checker.layout(rank);
      RC_ASSERT(tables.output_rows(rank) == static_cast<std::int64_t>(expected.rows.size()));
      std::int64_t content = 0;
      for (std::size_t row = 0; row < expected.rows.size(); ++row) {
        const reference::OutputRow& origin = expected.rows[row];
        if (origin.src_rank < 0) continue;
        ++content;
        const int column = column_of(round, rank, origin);
        // A source's rows of a column stand together, in the order in which the oracle lists them.
        std::int32_t& idx = found[static_cast<std::size_t>(origin.src_rank * tables.num_columns() + column)];
        RC_ASSERT(static_cast<std::int64_t>(row) == tables.row_begin(origin.src_rank, column) + idx);
        ++idx;
      }
      RC_ASSERT(tables.content_rows(rank) == content);
      overflow += tables.overflow_rows(rank);
      for (std::size_t local = 0; local + 1 < expected.expert_begin.size(); ++local) {
        const auto expert = layout.partition().first_expert(rank) + static_cast<std::int32_t>(local);
        RC_ASSERT(std::min(tables.group_begin(expert), tables.output_rows(rank)) == expected.expert_begin[local]);
      }
    }
    for (int src = 0; src < num_ranks; ++src) {
      for (int column = 0; column < tables.num_columns(); ++column) {
        RC_ASSERT(tables.num_kept(src, column) == found[static_cast<std::size_t>(src * tables.num_columns() + column)]);
      }
    }
    if (!layout.token_major()) {
      std::int64_t dropped = 0;
      for (int rank = 0; rank < num_ranks; ++rank) {
        const auto& of_rank = checker.layout(rank).expert_dropped;
        dropped += std::accumulate(of_rank.begin(), of_rank.end(), std::int64_t{0});
      }
      RC_ASSERT(overflow == dropped);
    }
  });
}

TEST(LayoutProperty, NoRoutingNeedsMoreThanTheLargestDemand) {
  check_property(kNumLayouts, [] {
    const Scenario scenario = any_routing();
    RC_LOG() << to_text(scenario) << std::endl;
    const Round round(scenario, 0);
    const auto num_ranks = static_cast<std::int32_t>(scenario.tokens_per_rank.size());
    const DispatcherInfo& info = any_dispatcher();
    const bool on_device = info.device() == Device::kCuda;
    const BufferPlan plan = plan_of(info, round.config(), num_ranks);
    const DispatchLayout& layout = plan.layout();
    const RowDemand& most = plan.max_demand();
    LayoutTables tables;
    const Counts counts(round, layout.params());
    tables.compute(layout, counts.views);
    for (int rank = 0; rank < num_ranks; ++rank) {
      const auto idx = static_cast<std::size_t>(rank);
      std::int64_t send_pairs = 0;
      std::int64_t receive_pairs = 0;
      std::int64_t send_assignments = 0;
      for (const std::int32_t count : counts.views[idx].tokens_to_rank) send_pairs += count;
      for (const auto& peer : counts.views) receive_pairs += peer.tokens_to_rank[idx];
      for (const std::int32_t count : counts.views[idx].rows_to_expert) send_assignments += count;
      RC_ASSERT(scenario.tokens_per_rank[idx] <= most.tokens);
      RC_ASSERT(tables.output_rows(rank) <= most.output_rows);
      const std::int64_t own_pairs = counts.views[idx].tokens_to_rank[idx];
      RC_ASSERT(send_pairs - (on_device ? own_pairs : 0) <= most.send_pairs);
      RC_ASSERT(receive_pairs <= most.receive_pairs);
      if (on_device && info.name() == "alltoall" && !plan.combines_per_rank()) {
        const ExpertPartition partition = layout.partition();
        for (std::int32_t local = 0; local < partition.num_local_experts(rank); ++local) {
          const auto expert = static_cast<std::size_t>(partition.first_expert(rank) + local);
          send_assignments -= counts.views[idx].rows_to_expert[expert];
        }
        RC_ASSERT(send_assignments <= most.send_rows);
        RC_ASSERT(std::max(receive_pairs, tables.content_rows(rank)) <= most.receive_rows);
      } else if (plan.sends_per_expert()) {
        RC_ASSERT(send_assignments <= most.send_rows);
        RC_ASSERT(tables.content_rows(rank) <= most.receive_rows);
      } else {
        RC_ASSERT(send_pairs <= most.send_rows);
        RC_ASSERT(receive_pairs <= most.receive_rows);
      }
    }
  });
}

TEST(LayoutProperty, SectionsLieOneBehindTheOther) {
  check_property(kNumLayouts, [] {
    const Scenario scenario = any_routing();
    RC_LOG() << to_text(scenario) << std::endl;
    const auto num_ranks = static_cast<std::int32_t>(scenario.tokens_per_rank.size());
    const BufferPlan usual = plan_of(any_dispatcher(), resolve_config(scenario.config, num_ranks), num_ranks);
    const EngineSizes engine{.control_bytes = *rc::gen::inRange<std::int64_t>(0, 100'000),
                             .page_bytes = *rc::gen::element<std::int64_t>(4096, 65536)};
    const BufferPlan plan(usual.rules(), usual.layout().params(), engine);
    const RowDemand& most = plan.max_demand();
    const auto some = [](std::int64_t end) { return *rc::gen::inRange<std::int64_t>(0, end + 1); };
    const RowDemand demand{.tokens = some(most.tokens),
                           .output_rows = some(most.output_rows),
                           .grad_rows = some(most.grad_rows),
                           .send_rows = some(most.send_rows),
                           .receive_rows = some(most.receive_rows),
                           .send_pairs = some(most.send_pairs),
                           .receive_pairs = some(most.receive_pairs)};
    const SectionBytes bytes = plan.section_bytes(demand);
    const SectionBytes largest = plan.section_bytes(most);
    RC_ASSERT(largest[BufferSection::kControl] >= engine.control_bytes);
    std::int64_t sum = 0;
    std::int64_t end = 0;
    for (const BufferSection section : kBufferSections) {
      const std::int32_t copies = plan.section_copies(section);
      RC_ASSERT(bytes[section] >= 0);
      RC_ASSERT(bytes[section] % engine.page_bytes == 0);
      RC_ASSERT(bytes[section] <= largest[section]);
      RC_ASSERT(plan.section_offset(section) == end);
      RC_ASSERT(plan.section_offset(section) % engine.page_bytes == 0);
      RC_ASSERT(plan.section_stride(section) == (copies > 1 ? largest[section] : 0));
      end += largest[section] * copies;
      sum += bytes[section] * copies;
    }
    RC_ASSERT(sum == plan.buffer_bytes(demand));
    RC_ASSERT(end == plan.reserved_bytes());
    RC_ASSERT(plan.buffer_bytes(plan.initial_demand()) <= plan.reserved_bytes());
  });
}

}  // namespace
}  // namespace epistle::testing
