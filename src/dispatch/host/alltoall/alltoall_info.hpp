#pragma once

#include "epistle/dispatcher_info.hpp"

namespace epistle::host {

[[nodiscard]] const DispatcherInfo& alltoall_info();

}  // namespace epistle::host
