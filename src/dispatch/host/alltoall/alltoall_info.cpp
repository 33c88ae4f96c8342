#include "dispatch/host/alltoall/alltoall_info.hpp"

#include <algorithm>

#include "dispatch/host/alltoall/alltoall.hpp"
#include "dispatch/host/engine/host_functions.hpp"

namespace epistle::host {
namespace {

/// A packed send buffer and a stage for what the all-to-all-v delivers. Expert layouts send one row per expert; unless
/// sums are flat, their rows are summed before they go back. Over links all that arrives is staged, records and
/// gradients of the weights too.
class AllToAllRules final : public HostRules {
 public:
  [[nodiscard]] bool sends_per_expert(const DispatchLayout& layout) const noexcept override {
    return !layout.token_major();
  }
  [[nodiscard]] bool uses_links(const DispatchLayout& layout) const noexcept override {
    return layout.params().spans_hosts;
  }
  [[nodiscard]] bool combines_per_rank(const DispatchLayout& layout) const noexcept override {
    return layout.can_combine_per_rank();
  }
  [[nodiscard]] SectionBytes content_bytes(const DispatchLayout& layout,
                                           const RowDemand& demand) const noexcept override {
    const LayoutParams& params = layout.params();
    const bool token_major = layout.token_major();
    const bool per_rank = combines_per_rank(layout);
    const bool linked = uses_links(layout);
    // Token rows arrive in the order of the output, and combine sends them as they lie.
    const std::int64_t staged_rows = token_major && !linked ? 0 : demand.receive_rows;
    const std::int64_t sent_bytes = std::max(layout.widest_row_bytes(), linked ? layout.record_bytes() : 0);
    const std::int64_t gradient_bytes =
        linked ? layout.weights_per_row() * static_cast<std::int64_t>(sizeof(float)) : 0;
    const std::int64_t returned_rows = token_major ? 0 : per_rank ? demand.receive_pairs : demand.receive_rows;
    const std::int64_t summed_rows = per_rank ? demand.send_pairs : demand.send_rows;
    SectionBytes bytes = HostRules::content_bytes(layout, demand);
    bytes[BufferSection::kSendRows] = std::max(demand.send_rows * sent_bytes, returned_rows * params.combine_row_bytes);
    bytes[BufferSection::kSendScales] =
        std::max(demand.send_rows * params.scale_bytes, token_major ? 0 : demand.receive_rows * gradient_bytes);
    bytes[BufferSection::kStageRows] = std::max(staged_rows * sent_bytes, summed_rows * params.combine_row_bytes);
    bytes[BufferSection::kStageScales] = std::max(staged_rows * params.scale_bytes, demand.send_rows * gradient_bytes);
    return bytes;
  }
};

Capabilities alltoall_capabilities() {
  Capabilities can = host_capabilities();
  can.joins_hosts = true;
  return can;
}

}  // namespace

const DispatcherInfo& alltoall_info() {
  static const DispatcherInfo info("alltoall", Device::kHost,
                                   "permute, one all-to-all-v, unpermute: the conservative baseline",
                                   alltoall_capabilities(), host::host_functions<AllToAllMover, AllToAllRules>());
  return info;
}

}  // namespace epistle::host
