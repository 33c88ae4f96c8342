// Which of libfabric's providers carries rows.
#pragma once

#include "fabric/fabric.hpp"
#include "fabric/ofi/ofi_library.hpp"

namespace epistle::ofi {

/// The entry of fi_getinfo that is taken, alone. Throws kUnsupported.
[[nodiscard]] InfoList choose_info(const FabricRequest& request);
[[nodiscard]] FabricWay way_of(const fi_info& info);

}  // namespace epistle::ofi
