#include "dispatch/host/alltoall/alltoall_info.hpp"

#include <algorithm>

#include "dispatch/host/alltoall/alltoall.hpp"
#include "dispatch/host/engine/host_functions.hpp"

namespace epistle::host {
namespace {

/// A packed send buffer and a stage for what the all-to-all-v delivers. Expert layouts send one row per expert; unless
/// sums are flat, their rows are summed before they go back.
class AllToAllRules final : public HostRules {
 public:
  [[nodiscard]] bool sends_per_expert(const DispatchLayout& layout) const noexcept override {
    return !layout.token_major();
  }
  [[nodiscard]] bool combines_per_rank(const DispatchLayout& layout) const noexcept override {
    return layout.can_combine_per_rank();
  }
  [[nodiscard]] SectionBytes content_bytes(const DispatchLayout& layout,
                                           const RowDemand& demand) const noexcept override {
    const LayoutParams& params = layout.params();
    const bool token_major = layout.token_major();
    const bool per_rank = combines_per_rank(layout);
    // Token rows arrive in the order of the output, and combine sends them as they lie.
    const std::int64_t sorted_rows = token_major ? 0 : demand.receive_rows;
    const std::int64_t returned_rows = token_major ? 0 : per_rank ? demand.receive_pairs : demand.receive_rows;
    const std::int64_t summed_rows = per_rank ? demand.send_pairs : demand.send_rows;
    SectionBytes bytes = HostRules::content_bytes(layout, demand);
    bytes[BufferSection::kSendRows] =
        std::max(demand.send_rows * layout.widest_row_bytes(), returned_rows * params.combine_row_bytes);
    bytes[BufferSection::kSendScales] = demand.send_rows * params.scale_bytes;
    bytes[BufferSection::kStageRows] =
        std::max(sorted_rows * layout.widest_row_bytes(), summed_rows * params.combine_row_bytes);
    bytes[BufferSection::kStageScales] = sorted_rows * params.scale_bytes;
    return bytes;
  }
};

}  // namespace

const DispatcherInfo& alltoall_info() {
  static const DispatcherInfo info("alltoall", Device::kHost,
                                   "permute, one all-to-all-v, unpermute: the conservative baseline",
                                   host::host_capabilities(), host::host_functions<AllToAllMover, AllToAllRules>());
  return info;
}

}  // namespace epistle::host
