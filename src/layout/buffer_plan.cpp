#include "layout/buffer_plan.hpp"

#include <algorithm>

namespace epistle {

void RowDemand::raise_to(const RowDemand& other) noexcept {
  tokens = std::max(tokens, other.tokens);
  output_rows = std::max(output_rows, other.output_rows);
  grad_rows = std::max(grad_rows, other.grad_rows);
  send_rows = std::max(send_rows, other.send_rows);
  receive_rows = std::max(receive_rows, other.receive_rows);
  send_pairs = std::max(send_pairs, other.send_pairs);
  receive_pairs = std::max(receive_pairs, other.receive_pairs);
}

// ---- Rules ----------------------------------------------------------------------------------------------------------

bool PlanRules::sends_per_expert(const DispatchLayout& /*layout*/) const noexcept { return false; }

bool PlanRules::combines_per_rank(const DispatchLayout& layout) const noexcept { return layout.token_major(); }

bool PlanRules::crosses_domains(const DispatchLayout& /*layout*/) const noexcept { return false; }

bool PlanRules::uses_links(const DispatchLayout& layout) const noexcept { return crosses_domains(layout); }

SectionBytes PlanRules::content_bytes(const DispatchLayout& layout, const RowDemand& demand) const noexcept {
  const LayoutParams& params = layout.params();
  SectionBytes bytes;
  bytes[BufferSection::kReceiveRows] = demand.output_rows * params.row_bytes;
  bytes[BufferSection::kReceiveScales] = layout.scale_places(demand.output_rows).num_bytes();
  bytes[BufferSection::kCombineRows] = demand.output_rows * params.combine_row_bytes;
  bytes[BufferSection::kGradWeights] =
      demand.grad_rows * layout.weights_per_row() * static_cast<std::int64_t>(sizeof(float));
  return bytes;
}

RowDemand PlanRules::max_demand(const DispatchLayout& layout) const noexcept {
  const LayoutParams& params = layout.params();
  const bool per_expert = sends_per_expert(layout);
  const std::int64_t sent_per_token = per_expert ? std::int64_t{params.top_k} : layout.max_ranks_per_token();
  const std::int64_t received_per_token = per_expert ? layout.max_rows_per_token() : 1;
  const std::int64_t group_tokens = params.max_tokens * params.num_ranks;
  return {.tokens = params.max_tokens,
          .output_rows = layout.max_output_rows(),
          .grad_rows = layout.max_output_rows(),
          .send_rows = params.max_tokens * sent_per_token,
          .receive_rows = group_tokens * received_per_token,
          .send_pairs = params.max_tokens * layout.max_ranks_per_token(),
          .receive_pairs = group_tokens};
}

RowDemand PlanRules::initial_demand(const DispatchLayout& layout) const noexcept {
  return layout.params().sizing == SizingMode::kCapacity ? max_demand(layout) : RowDemand{};
}

// ---- Plan -----------------------------------------------------------------------------------------------------------

BufferPlan::BufferPlan(const PlanRules& rules, const LayoutParams& params, const EngineSizes& engine) noexcept
    : rules_(&rules),
      layout_(params),
      engine_(engine),
      max_demand_(rules.max_demand(layout_)),
      initial_demand_(rules.initial_demand(layout_)),
      sends_per_expert_(rules.sends_per_expert(layout_)),
      combines_per_rank_(rules.combines_per_rank(layout_)),
      crosses_domains_(rules.crosses_domains(layout_)),
      uses_links_(rules.uses_links(layout_)) {
  if (crosses_domains_) {
    max_demand_.receive_rows *= engine_.most_sources;
    initial_demand_.receive_rows *= engine_.most_sources;
  }
  const SectionBytes largest = section_bytes(max_demand_);
  for (const BufferSection section : kBufferSections) {
    const std::int32_t copies = section_copies(section);
    offsets_[section] = reserved_bytes_;
    strides_[section] = copies > 1 ? largest[section] : 0;
    reserved_bytes_ += largest[section] * copies;
  }
}

SectionBytes BufferPlan::section_bytes(const RowDemand& demand) const noexcept {
  SectionBytes bytes = rules_->content_bytes(layout_, demand);
  bytes[BufferSection::kControl] = engine_.control_bytes;
  for (const BufferSection section : kBufferSections) {
    bytes[section] = (bytes[section] + engine_.page_bytes - 1) / engine_.page_bytes * engine_.page_bytes;
  }
  return bytes;
}

std::int32_t BufferPlan::section_copies(BufferSection section) const noexcept {
  const bool is_leased = section == BufferSection::kReceiveRows || section == BufferSection::kReceiveScales ||
                         section == BufferSection::kCombineRows;
  return is_leased ? layout_.params().num_buffers : 1;
}

std::int64_t BufferPlan::buffer_bytes(const RowDemand& demand) const noexcept {
  const SectionBytes bytes = section_bytes(demand);
  std::int64_t sum = 0;
  for (const BufferSection section : kBufferSections) sum += bytes[section] * section_copies(section);
  return sum;
}

}  // namespace epistle
