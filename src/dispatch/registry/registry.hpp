// What there is, by name and device. A dispatcher is a folder that gives one DispatcherInfo; it is entered here.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "epistle/dispatcher.hpp"

namespace epistle {

/// Adds a dispatcher to those of this process, behind the ones there are; `info` must live as long as the process. Call
/// it before the first dispatcher is created or looked for. Throws kInvalidArgument where the name is taken on its
/// device.
void register_dispatcher(const DispatcherInfo& info);

}  // namespace epistle
