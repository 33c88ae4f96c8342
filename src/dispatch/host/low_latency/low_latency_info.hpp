#pragma once

#include "epistle/dispatcher_info.hpp"

namespace epistle::host {

[[nodiscard]] const DispatcherInfo& low_latency_info();

}  // namespace epistle::host
