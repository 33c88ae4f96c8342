// What `auto` says of itself on either device: known in every build.
#pragma once

#include "epistle/dispatcher_info.hpp"

namespace epistle::automatic {

[[nodiscard]] const DispatcherInfo& host_info();
[[nodiscard]] const DispatcherInfo& cuda_info();

}  // namespace epistle::automatic
