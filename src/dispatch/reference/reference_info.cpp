#include "dispatch/reference/reference_info.hpp"

#include "dispatch/host/engine/host_functions.hpp"
#include "dispatch/reference/reference_dispatcher.hpp"

namespace epistle::reference {
namespace {

/// Room to publish a rank's whole input.
class ReferenceRules final : public host::HostRules {
 public:
  [[nodiscard]] SectionBytes content_bytes(const DispatchLayout& layout,
                                           const RowDemand& demand) const noexcept override {
    SectionBytes bytes = HostRules::content_bytes(layout, demand);
    bytes[BufferSection::kSendRows] = demand.tokens * layout.widest_row_bytes();
    bytes[BufferSection::kSendScales] = demand.tokens * layout.params().scale_bytes;
    return bytes;
  }
};

}  // namespace

const DispatcherInfo& reference_info() {
  static const DispatcherInfo info("reference", Device::kHost,
                                   "every rank sees all inputs, one element at a time: for checking",
                                   host::host_capabilities(), host::host_functions<ReferenceMover, ReferenceRules>());
  return info;
}

}  // namespace epistle::reference
