// How a row of bf16 becomes fp8: the arithmetic of its scales and its elements, usable from host and device code. One
// scale stands for kScaleBlockElements elements (the last block may be shorter):
//
//   amax    = max(1e-4, |x| of all elements), NaNs left out
//   fp32    scale = amax * (1/448), inverse = 448 / amax
//   powers  scale = 2^e, inverse = 2^-e, with e = ceil(log2(amax * (1/448))) between -126 and 127
//   element = e4m3 nearest to x * inverse, ties to even, at most 448; NaN = 0x7f
//
// All in fp32, every operation rounded. These are the bits of DeepEP's low-latency kernels.
#pragma once

#include <bit>
#include <cstdint>

#include "epistle/types.hpp"

namespace epistle::fp8 {

inline constexpr float kLargest = 448.0F;  // of e4m3
inline constexpr float kInverseOfLargest = 1.0F / kLargest;
// So that a block of zeros has a scale that can be divided by.
inline constexpr float kSmallestAmax = 1e-4F;

inline constexpr std::uint8_t kLargestBits = 0x7e;
inline constexpr std::uint8_t kNanBits = 0x7f;

// Of fp32.
inline constexpr std::int32_t kMantissaBits = 23;
inline constexpr std::int32_t kExponentBias = 127;
inline constexpr std::uint32_t kInfinity = 0x7f800000U;

// The exponents that a scale can have: those of normal fp32 numbers, which are those of UE8M0 bytes from 1 to 254.
inline constexpr std::int32_t kSmallestExponent = -126;
inline constexpr std::int32_t kLargestExponent = 127;

[[nodiscard]] EPISTLE_HOST_DEVICE inline std::uint32_t bits_of(float value) noexcept {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  return std::bit_cast<std::uint32_t>(value);
#endif
}

[[nodiscard]] EPISTLE_HOST_DEVICE inline float from_bits(std::uint32_t bits) noexcept {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  return std::bit_cast<float>(bits);
#endif
}

/// 2^exponent, from kSmallestExponent - 1 (a subnormal) up to kLargestExponent.
[[nodiscard]] EPISTLE_HOST_DEVICE inline float power_of_two(std::int32_t exponent) noexcept {
  if (exponent < kSmallestExponent) return from_bits(1U << (kMantissaBits - 1));
  return from_bits(static_cast<std::uint32_t>(exponent + kExponentBias) << kMantissaBits);
}

/// The scale of one block, and what its elements are multiplied by.
struct BlockScale {
  float scale = 0.0F;
  float inverse = 0.0F;

  /// The UE8M0 byte of a scale that is a power of two.
  [[nodiscard]] EPISTLE_HOST_DEVICE std::uint8_t exponent_byte() const noexcept {
    return static_cast<std::uint8_t>(bits_of(scale) >> kMantissaBits);
  }
};

/// `largest`: the largest magnitude in the block, NaNs left out; 0 where there is none.
[[nodiscard]] EPISTLE_HOST_DEVICE inline BlockScale scale_of_block(float largest, bool powers_of_two) noexcept {
  const float amax = largest > kSmallestAmax ? largest : kSmallestAmax;
  const float scale = amax * kInverseOfLargest;
  if (!powers_of_two) return {scale, kLargest / amax};
  const std::uint32_t bits = bits_of(scale);
  const std::uint32_t mantissa = bits & ((1U << kMantissaBits) - 1U);
  std::int32_t exponent = static_cast<std::int32_t>(bits >> kMantissaBits) - kExponentBias + (mantissa != 0U ? 1 : 0);
  if (exponent < kSmallestExponent) exponent = kSmallestExponent;
  if (exponent > kLargestExponent) exponent = kLargestExponent;
  return {power_of_two(exponent), power_of_two(-exponent)};
}

/// e4m3 of a product x * inverse.
[[nodiscard]] EPISTLE_HOST_DEVICE inline std::uint8_t to_e4m3(float product) noexcept {
  constexpr std::int32_t kDroppedBits = kMantissaBits - 3;
  constexpr std::int32_t kBiasDifference = kExponentBias - 7;
  constexpr std::int32_t kFirstNormal = kExponentBias - 6;  // exponent field of 2^-6; below it e4m3 is subnormal
  const std::uint32_t bits = bits_of(product);
  const std::uint32_t magnitude = bits & 0x7fffffffU;
  if (magnitude > kInfinity) return kNanBits;
  const auto sign = static_cast<std::uint8_t>(bits >> 24 & 0x80U);
  if (from_bits(magnitude) >= kLargest) return static_cast<std::uint8_t>(sign | kLargestBits);
  const auto exponent = static_cast<std::int32_t>(magnitude >> kMantissaBits);
  std::uint32_t kept = magnitude;
  std::int32_t dropped = kDroppedBits;
  if (exponent < kFirstNormal) {
    // A fixed-point number in units of 2^-9. What is below a quarter of one becomes 0, also if it is subnormal here.
    dropped += kFirstNormal - exponent;
    if (dropped > kMantissaBits + 1) return sign;
    kept = (magnitude & ((1U << kMantissaBits) - 1U)) | 1U << kMantissaBits;
  } else {
    kept -= static_cast<std::uint32_t>(kBiasDifference) << kMantissaBits;
  }
  // Just under half of the dropped part, plus the last kept bit, rounds ties to even; a carry out of the mantissa is
  // right as it is, from subnormals to normal numbers as well.
  const std::uint32_t half = (1U << (dropped - 1)) - 1U;
  return static_cast<std::uint8_t>(sign | (kept + half + (kept >> dropped & 1U)) >> dropped);
}

// ---- Scales of a row
// --------------------------------------------------------------------------------------------------

/// Scales of a row of `hidden` elements.
[[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t num_scales(std::int64_t hidden) noexcept {
  return (hidden + kScaleBlockElements - 1) / kScaleBlockElements;
}

/// Bytes that they take, in rows: whole words, which exponent bytes are filled up to with zeros.
[[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t scale_row_bytes(std::int64_t hidden,
                                                                         ScaleFormat format) noexcept {
  constexpr std::int64_t kWordBytes = 4;
  const std::int64_t num_bytes = num_scales(hidden) * scale_element_bytes(format);
  return (num_bytes + kWordBytes - 1) / kWordBytes * kWordBytes;
}

}  // namespace epistle::fp8
