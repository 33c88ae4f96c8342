// A part of a bf16 row becomes fp8 in a warp (the arithmetic is in layout/fp8_blocks.hpp).
#pragma once

#include <cstdint>

#include <cuda_fp8.h>

#include "dispatch/cuda/device/formats.cuh"
#include "dispatch/cuda/device/rows.cuh"
#include "layout/fp8_blocks.hpp"

namespace epistle::cuda {

/// Blocks that a warp quantises at once, each with a scale, and their elements.
inline constexpr int kQuantisedBlocks = 7;
inline constexpr int kQuantisedElements = kQuantisedBlocks * static_cast<int>(kScaleBlockElements);

/// In shared memory; a warp's own.
struct alignas(16) QuantisedPart {
  std::byte elements[kQuantisedElements];
  std::uint32_t scales[kQuantisedBlocks + 1];  ///< fp32; zeros behind the last one
};

/// Eight elements times `inverse`, as e4m3.
__device__ inline uint2 to_fp8(const float (&values)[Bf16Format::kElements], float inverse) {
  std::uint32_t words[2] = {};
#pragma unroll
  for (int i = 0; i < Bf16Format::kElements; i += 2) {
    const float2 pair = make_float2(__fmul_rn(values[i], inverse), __fmul_rn(values[i + 1], inverse));
    const std::uint32_t both = __nv_cvt_float2_to_fp8x2(pair, __NV_SATFINITE, __NV_E4M3);
    words[i / 4] |= both << (8 * (i % 4));
  }
  return make_uint2(words[0], words[1]);
}

/// Quantises `num_elements` elements from `row` on, at most kQuantisedElements. One warp.
__device__ inline void quantise(const std::byte* row, int num_elements, bool aligned, bool powers_of_two,
                                QuantisedPart& out) {
  constexpr int kElements = Bf16Format::kElements;
  constexpr int kVectors = (kQuantisedElements / kElements + kWarpSize - 1) / kWarpSize;
  constexpr int kScaleLanes = static_cast<int>(kScaleBlockElements) / kElements;
  uint4 raw[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int first = (i * kWarpSize + lane_id()) * kElements;
    raw[i] = make_uint4(0, 0, 0, 0);
    if (first >= num_elements) continue;
    const std::byte* from = row + static_cast<std::int64_t>(first) * 2;
    raw[i] = aligned ? load_vector(from) : load_bytes(from, kVectorBytes);
  }
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int vector = i * kWarpSize + lane_id();
    float values[kElements];
    Bf16Format::unpack(raw[i], values);
    float largest = 0.0F;
#pragma unroll
    for (const float value : values) largest = fmaxf(largest, fabsf(value));
    // Of numbers that are not negative, the bits are in the same order; NaNs are left out above.
    const unsigned half = lane_id() < kScaleLanes ? (1U << kScaleLanes) - 1U : ~((1U << kScaleLanes) - 1U);
    largest = __uint_as_float(__reduce_max_sync(half, __float_as_uint(largest)));
    const fp8::BlockScale block = fp8::scale_of_block(largest, powers_of_two);
    if (vector * kElements < kQuantisedElements) {
      *reinterpret_cast<uint2*>(out.elements + vector * kElements) = to_fp8(values, block.inverse);
    }
    if (lane_id() % kScaleLanes == 0) {
      out.scales[vector / kScaleLanes] = vector * kElements < num_elements ? __float_as_uint(block.scale) : 0U;
    }
  }
  __syncwarp();
}

}  // namespace epistle::cuda
