// What ranks announce, in words.
#pragma once

#include <string_view>

#include "epistle/error.hpp"

#include "dispatch/cuda/device/call_words.hpp"

namespace epistle::cuda {

[[nodiscard]] std::string_view name_of(DeviceCall call) noexcept;
[[nodiscard]] Phase phase_of(DeviceCall call) noexcept;

/// What `rank` throws where the ranks did not agree; the verdict must not be kAgreed.
[[nodiscard]] Error to_error(const Verdict& verdict, int rank, Phase phase);

}  // namespace epistle::cuda
