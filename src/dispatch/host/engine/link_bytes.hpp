// What one dispatch and one combine put on every class of links.
#pragma once

#include "epistle/dispatcher.hpp"

#include "dispatch/host/engine/host_context.hpp"

namespace epistle::host {

/// For this rank's tokens, as the layout has them; `stats` of the handle.
[[nodiscard]] WireBytes link_bytes_of(const HostContext& context, const HostHandle& handle, const RoutingStats& stats);

}  // namespace epistle::host
