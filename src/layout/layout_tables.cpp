#include "layout/layout_tables.hpp"

#include <algorithm>

namespace epistle {

void LayoutTables::place_column(const DispatchLayout& layout, std::span<const ConstCountsView> counts, int column,
                                int dst_rank, std::int64_t group_begin) {
  std::int64_t idx_in_group = 0;
  const auto dst = static_cast<std::size_t>(dst_rank);
  for (int src_rank = 0; src_rank < layout.params().num_ranks; ++src_rank) {
    const ConstCountsView& source = counts[static_cast<std::size_t>(src_rank)];
    const auto& column_counts = layout.token_major() ? source.tokens_to_rank : source.rows_to_expert;
    const std::int64_t count = column_counts[static_cast<std::size_t>(column)];
    const std::int64_t kept = layout.kept_rows(group_begin, idx_in_group, count);
    row_begin_[at(src_rank, column)] = static_cast<std::int32_t>(group_begin + idx_in_group);
    num_kept_[at(src_rank, column)] = static_cast<std::int32_t>(kept);
    content_rows_[dst] += kept;
    overflow_rows_[dst] += count - kept;
    idx_in_group += count;
  }
}

void LayoutTables::resize(const DispatchLayout& layout) {
  const LayoutParams& params = layout.params();
  const auto num_ranks = static_cast<std::size_t>(params.num_ranks);
  num_columns_ = layout.token_major() ? params.num_ranks : params.num_experts;
  const std::size_t num_cells = num_ranks * static_cast<std::size_t>(num_columns_);
  row_begin_.resize(num_cells);
  num_kept_.resize(num_cells);
  group_begin_.resize(static_cast<std::size_t>(params.num_experts) + 1);
  output_rows_.resize(num_ranks);
  content_rows_.resize(num_ranks);
  overflow_rows_.resize(num_ranks);
  if (layout.token_major()) return;
  const auto max_local = static_cast<std::size_t>(layout.partition().max_local_experts());
  group_counts_.resize(max_local);
  group_begins_.resize(max_local + 1);
}

void LayoutTables::compute(const DispatchLayout& layout, std::span<const ConstCountsView> counts,
                           std::span<const std::int32_t> slots_of_rank) {
  const LayoutParams& params = layout.params();
  const ExpertPartition partition = layout.partition();
  resize(layout);
  std::fill(content_rows_.begin(), content_rows_.end(), 0);
  std::fill(overflow_rows_.begin(), overflow_rows_.end(), 0);

  if (layout.token_major()) {
    for (int rank = 0; rank < params.num_ranks; ++rank) {
      place_column(layout, counts, rank, rank, 0);
      const auto idx = static_cast<std::size_t>(rank);
      output_rows_[idx] = layout.static_output_rows(content_rows_[idx]);
    }
    return;
  }
  for (int rank = 0; rank < params.num_ranks; ++rank) {
    const std::int32_t first = partition.first_expert(rank);
    const std::int32_t num_local = partition.num_local_experts(rank);
    for (std::int32_t local = 0; local < num_local; ++local) {
      std::int64_t count = 0;
      for (const ConstCountsView& source : counts)
        count += source.rows_to_expert[static_cast<std::size_t>(first + local)];
      group_counts_[static_cast<std::size_t>(local)] = count;
    }
    output_rows_[static_cast<std::size_t>(rank)] =
        layout.expert_group_begins(group_counts_.data(), num_local, group_begins_.data());
    if (params.layout == OutputLayout::kExpertBlocks && !slots_of_rank.empty()) {
      output_rows_[static_cast<std::size_t>(rank)] =
          group_begins_[static_cast<std::size_t>(slots_of_rank[static_cast<std::size_t>(rank)])];
    }
    for (std::int32_t local = 0; local < num_local; ++local) {
      const std::int64_t begin = group_begins_[static_cast<std::size_t>(local)];
      group_begin_[static_cast<std::size_t>(first + local)] = begin;
      place_column(layout, counts, first + local, rank, begin);
    }
  }
}

}  // namespace epistle
