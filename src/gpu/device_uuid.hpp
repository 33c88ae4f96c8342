// What tells a GPU from the others, whichever process asks.
#pragma once

#include <array>

namespace epistle::cuda {

using DeviceUuid = std::array<char, 16>;

/// Throws as check_cuda() does.
[[nodiscard]] DeviceUuid uuid_of(int device);

}  // namespace epistle::cuda
