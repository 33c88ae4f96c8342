// The GPU driver's own version, which the CUDA runtime does not tell.
#pragma once

#include <string>
#include <string_view>

namespace epistle {

/// "580.159.04" from what the kernel module says of itself; empty where there is none.
[[nodiscard]] std::string parse_driver_version(std::string_view text);

/// Of this machine; empty without a driver.
[[nodiscard]] std::string gpu_driver_version();

}  // namespace epistle
