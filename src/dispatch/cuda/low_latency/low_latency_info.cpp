#include "dispatch/cuda/low_latency/low_latency_info.hpp"

#include "dispatch/call/build_parts.hpp"
#include "dispatch/cuda/direct/direct_info.hpp"
#include "dispatch/cuda/engine/sizes.hpp"
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

Capabilities low_latency_capabilities() {
  Capabilities can = direct_info().capabilities();
  can.max_top_k = kMaxLineTopK;
  can.late_weights = true;
  return can;
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
      .own_memory = own_memory,
      .check = check_low_latency,
      .create = create_low_latency};
  static const DispatcherInfo info("low_latency", Device::kCuda,
                                   "rows carry their own arrival flags, and nothing is agreed on before they are sent: "
                                   "for the few tokens of a decode step",
                                   low_latency_capabilities(), kFunctions);
  return info;
}

}  // namespace epistle::cuda
