#include "dispatch/cuda/low_latency/low_latency_info.hpp"

#include <algorithm>

#include "dispatch/call/build_parts.hpp"
#include "dispatch/cuda/direct/direct_info.hpp"
#include "dispatch/cuda/engine/sizes.hpp"
#include "dispatch/cuda/low_latency/flag_arrays.hpp"
#include "dispatch/cuda/low_latency/line_plan.hpp"

namespace epistle::cuda {
namespace {

/// What `direct` needs, for the calls that go as they do there, and fixed places for lines.
class LowLatencyRules final : public DeviceRules {
 public:
  [[nodiscard]] SectionBytes content_bytes(const DispatchLayout& layout,
                                           const RowDemand& demand) const noexcept override {
    SectionBytes bytes = direct_rules().content_bytes(layout, demand);
    const LinePlan lines = plan_lines(layout);
    bytes[BufferSection::kDispatchLines] = lines.dispatch_bytes();
    bytes[BufferSection::kCombineLines] = lines.combine_bytes();
    return bytes;
  }
};

/// Tokens of a rank up to which a round trip with ids takes less time than with `direct`, as measured between two
/// ranks, hidden 7168, top-8 of 256, fp8 on the way, in a chain of round trips.
struct Crossover {
  bool token_rows;
  std::int64_t most_tokens;
};
constexpr Crossover kCrossovers[] = {
    {true, 768},   // H200: 98 us against 106; of 1024 tokens 129 against 128
    {false, 768},  // H200, of 256 tokens: 48 us against 115; of more it was not measured
};

std::int64_t best_up_to(const ResolvedConfig& config, int num_ranks) {
  for (const Crossover& crossover : kCrossovers) {
    if (crossover.token_rows != (config.layout == OutputLayout::kTokenMajor)) continue;
    // Every block of dispatch reads the whole routing: a dispatcher for more tokens than that does not send by lines.
    ResolvedConfig few = config;
    few.max_tokens = std::min({config.max_tokens, crossover.most_tokens, kMaxLineEntries / config.top_k});
    return plan_lines(DispatchLayout(to_layout_params(few, num_ranks))).routes ? few.max_tokens : 0;
  }
  return 0;
}

Capabilities low_latency_capabilities() {
  Capabilities can = direct_info().capabilities();
  can.max_top_k = kMaxLineTopK;
  can.late_weights = true;
  can.copy_engines = false;
  can.row_flags = true;
  return can;
}

/// And flags of rows, where they are asked for. Of the rank with the most experts.
std::vector<MemorySection> low_latency_memory(const ResolvedConfig& config, const MemoryQuery& query) {
  std::vector<MemorySection> sections = own_memory(config, query);
  if (!std::get<CudaOptions>(query.options).row_flags) return sections;
  const DispatchLayout layout(to_layout_params(config, query.num_ranks));
  BufferCarver carver(nullptr);
  RowFlagArrays arrays;
  carve_row_flags(carver, shape_of_flags(layout, layout.partition().max_local_experts()), config.num_buffers, arrays);
  sections.push_back(fixed_section("flags of rows", MemoryKind::kPrivate, carver.num_bytes()));
  return sections;
}

}  // namespace

const PlanRules& low_latency_rules() {
  static const LowLatencyRules rules;
  return rules;
}

const DispatcherInfo& low_latency_info() {
  static constexpr DispatcherInfo::Functions kFunctions = {
      .plan = [](const ResolvedConfig& config,
                 int num_ranks) { return plan_buffers(config, {.num_ranks = num_ranks}, low_latency_rules()); },
      .own_memory = low_latency_memory,
      .best_up_to = best_up_to,
      .check = check_low_latency,
      .create = create_low_latency};
  static const DispatcherInfo info("low_latency", Device::kCuda,
                                   "rows carry their own arrival flags, and nothing is agreed on before they are sent: "
                                   "for the few tokens of a decode step",
                                   low_latency_capabilities(), kFunctions);
  return info;
}

}  // namespace epistle::cuda
