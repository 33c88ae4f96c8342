#include <algorithm>

#include "dispatch/cuda/low_latency/flag_arrays.hpp"
#include "dispatch/cuda/low_latency/line_plan.hpp"

namespace epistle::cuda {

LinePlan plan_lines(const DispatchLayout& layout) noexcept {
  const LayoutParams& params = layout.params();
  LinePlan lines;
  lines.num_ranks = params.num_ranks;
  lines.num_columns = status_column(params.num_ranks, params.num_experts) + 1;
  lines.max_tokens = static_cast<std::int32_t>(std::min(params.max_tokens, kMaxLineEntries));
  lines.top_k = params.top_k;
  lines.row_bytes = params.row_bytes;
  lines.scale_bytes = params.scale_bytes;
  lines.header_lines = static_cast<std::int32_t>(
      (header_words(params.top_k) * std::int64_t{4} + kLinePayloadBytes - 1) / kLinePayloadBytes);
  lines.row_lines = params.quantises ? block_lines_of(params.row_bytes) : lines_of(params.row_bytes);
  lines.quantises = params.quantises;
  lines.powers_of_two = params.powers_of_two;
  lines.scale_format = params.scale_format;
  lines.ranks = RankFinder(layout.partition());
  lines.scale_lines = params.quantises ? 0 : lines_of(params.scale_bytes);
  lines.combine_row_bytes = params.combine_row_bytes;
  lines.combine_lines = lines_of(params.combine_row_bytes);
  if (params.num_ranks > 1) {
    lines.combine_slots =
        params.max_tokens * (layout.can_combine_per_rank() ? layout.max_other_ranks_per_token() : params.top_k);
  }
  const std::int64_t num_words = (std::int64_t{params.num_ranks} + params.num_experts) * line_words(params.max_tokens);
  lines.complete();
  const std::int64_t most_rows = params.max_tokens * params.num_ranks;
  lines.combines = LineDivisor::is_exact_up_to(most_rows * lines.combine_chunks, lines.combine_chunks) &&
                   LineDivisor::is_exact_up_to(most_rows, params.num_ranks);
  lines.routes = params.sizing == SizingMode::kCapacity && layout.fits_any_routing() &&
                 params.max_tokens * params.top_k <= kMaxLineEntries && num_words <= kMaxLineWords &&
                 params.num_experts <= kMaxLineExperts &&
                 LineDivisor::is_exact_up_to(most_rows * lines.dispatch_parts, lines.dispatch_parts);
  lines.complete();
  return lines;
}

device::RowFlags shape_of_flags(const DispatchLayout& layout, std::int32_t num_local_experts) noexcept {
  const bool blocks = layout.params().layout == OutputLayout::kExpertBlocks;
  device::RowFlags shape;
  shape.num_ranks = layout.params().num_ranks;
  shape.num_local_experts = num_local_experts;
  shape.num_rows = layout.params().capacity_rows * (blocks ? num_local_experts : 1);
  return shape;
}

void carve_row_flags(BufferCarver& carver, const device::RowFlags& shape, std::int32_t num_buffers,
                     RowFlagArrays& arrays) noexcept {
  carver.take(arrays.arrivals, num_buffers * num_flags(shape));
  carver.take(arrays.parts, num_flags(shape));
  carver.take(arrays.done, num_buffers * shape.num_rows);
  carver.take(arrays.numbers, num_buffers);
}

}  // namespace epistle::cuda
