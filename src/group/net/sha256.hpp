// SHA-256 (FIPS 180-4) and the message authentication code that is made of it (RFC 2104): what peers prove by that they
// know the job's secret, without sending it.
#pragma once

#include <array>
#include <cstddef>
#include <string_view>

namespace epistle {

using Digest = std::array<std::byte, 32>;

[[nodiscard]] Digest sha256(std::string_view bytes);
[[nodiscard]] Digest hmac_sha256(std::string_view key, std::string_view bytes);

/// Takes as long for digests that differ early as for those that differ late.
[[nodiscard]] bool equal_in_constant_time(const Digest& a, const Digest& b) noexcept;

}  // namespace epistle
