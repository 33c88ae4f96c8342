// Scalar conversions between fp32 and the payload types: short, obvious and exact. The vectorised ones are tested
// against these. All roundings are to nearest, ties to even; a NaN becomes the quiet NaN of its type with no other bits
// set.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace epistle::numeric {

inline constexpr std::uint16_t kBf16Nan = 0x7fc0;
inline constexpr std::uint16_t kFp16Nan = 0x7e00;
inline constexpr std::uint32_t kFp32Nan = 0x7fc00000;

[[nodiscard]] inline float canonical_fp32(float value) noexcept {
  return std::isnan(value) ? std::bit_cast<float>(kFp32Nan) : value;
}

[[nodiscard]] inline float bf16_to_fp32(std::uint16_t bits) noexcept {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

[[nodiscard]] inline std::uint16_t fp32_to_bf16(float value) noexcept {
  if (std::isnan(value)) return kBf16Nan;
  const auto bits = std::bit_cast<std::uint32_t>(value);
  // Adding just under half of the dropped part, plus the last kept bit, rounds ties to even.
  return static_cast<std::uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline constexpr std::uint32_t kFp16Rebias = std::uint32_t{127 - 15} << 23;  // exponents of fp32 over those of fp16
inline constexpr int kFp16DroppedBits = 13;                                  // of fp32's mantissa

[[nodiscard]] inline float fp16_to_fp32(std::uint16_t bits) noexcept {
  constexpr float kSubnormal = 1.0F / 16777216.0F;  // 2^-24
  const int exponent = (bits >> 10) & 0x1f;
  const int mantissa = bits & 0x3ff;
  float magnitude = 0.0F;
  if (exponent == 0x1f) {
    magnitude = mantissa == 0 ? INFINITY : std::bit_cast<float>(kFp32Nan);
  } else if (exponent == 0) {
    magnitude = static_cast<float>(mantissa) * kSubnormal;
  } else {
    magnitude = std::bit_cast<float>((static_cast<std::uint32_t>(bits & 0x7fff) << kFp16DroppedBits) + kFp16Rebias);
  }
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

[[nodiscard]] inline std::uint16_t fp32_to_fp16(float value) noexcept {
  if (std::isnan(value)) return kFp16Nan;
  constexpr float kSmallestNormal = 6.103515625e-05F;  // 2^-14
  constexpr float kSubnormalsPerUnit = 16777216.0F;    // 2^24: subnormals are multiples of 2^-24
  constexpr float kFirstOverflow = 65520.0F;           // halfway between the largest value and 2^16
  const auto sign = static_cast<std::uint16_t>(std::signbit(value) ? 0x8000 : 0);
  const float magnitude = std::fabs(value);
  if (magnitude >= kFirstOverflow) return static_cast<std::uint16_t>(sign | 0x7c00);
  if (magnitude < kSmallestNormal) {
    // A result of 0x400 is the smallest normal value, in the same encoding.
    return static_cast<std::uint16_t>(sign | static_cast<int>(std::nearbyint(magnitude * kSubnormalsPerUnit)));
  }
  // As for bf16; what is rounded up beyond the mantissa carries into the exponent.
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(magnitude) - kFp16Rebias;
  return static_cast<std::uint16_t>(sign | ((bits + 0xfff + ((bits >> kFp16DroppedBits) & 1)) >> kFp16DroppedBits));
}

/// e4m3 (no infinities, NaN = all ones): 4 exponent bits, bias 7, 3 mantissa bits.
[[nodiscard]] inline float fp8_e4m3_to_fp32(std::uint8_t bits) noexcept {
  const int exponent = (bits >> 3) & 0xf;
  const int mantissa = bits & 0x7;
  if ((bits & 0x7f) == 0x7f) return std::bit_cast<float>(kFp32Nan);
  const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                        : std::ldexp(static_cast<float>(mantissa + 8), exponent - 10);
  return (bits & 0x80) != 0 ? -magnitude : magnitude;
}

}  // namespace epistle::numeric
