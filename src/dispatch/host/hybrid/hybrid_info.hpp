#pragma once

#include "epistle/dispatcher_info.hpp"

namespace epistle::host {

[[nodiscard]] const DispatcherInfo& hybrid_info();

}  // namespace epistle::host
