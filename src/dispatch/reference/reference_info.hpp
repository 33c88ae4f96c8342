#pragma once

#include "epistle/dispatcher_info.hpp"

namespace epistle::reference {

[[nodiscard]] const DispatcherInfo& reference_info();

}  // namespace epistle::reference
