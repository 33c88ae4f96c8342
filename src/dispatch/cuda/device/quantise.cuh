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

/// What a warp quantises at once, as it was: bf16 elements in the registers of its lanes. Four lanes hold a block, so
/// that each finds one scale, and take turns with its vectors.
struct UnquantisedPart {
  static constexpr int kElements = Bf16Format::kElements;
  static constexpr int kLanes = 4;  // of a block
  static constexpr int kVectors = static_cast<int>(kScaleBlockElements) / kElements / kLanes;

  uint4 v[kVectors];

  /// First element of one of this lane's vectors.
  __device__ static int first(int vector) {
    const int lane = lane_id();
    return lane / kLanes * static_cast<int>(kScaleBlockElements) + (vector * kLanes + lane % kLanes) * kElements;
  }
  /// Takes `num_elements` elements from `row` on; the rest is zero.
  __device__ void load(const std::byte* row, int num_elements, bool aligned) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      v[i] = make_uint4(0, 0, 0, 0);
      if (first(i) >= num_elements) continue;
      const std::byte* from = row + first(i) * 2;
      v[i] = aligned ? load_vector(from) : load_bytes(from, kVectorBytes);
    }
  }
};

/// The larger of two bf16 elements, twice; leaves NaNs out.
__device__ inline std::uint32_t larger_pair(std::uint32_t a, std::uint32_t b) {
  const __nv_bfloat162 larger =
      __hmax2(*reinterpret_cast<const __nv_bfloat162*>(&a), *reinterpret_cast<const __nv_bfloat162*>(&b));
  return *reinterpret_cast<const std::uint32_t*>(&larger);
}

/// Quantises the `num_elements` elements of a part, at most kQuantisedElements. One warp.
__device__ inline void quantise(const UnquantisedPart& part, int num_elements, bool powers_of_two, QuantisedPart& out) {
  constexpr int kElements = UnquantisedPart::kElements;
  constexpr int kLanes = UnquantisedPart::kLanes;
  static_assert(kWarpSize / kLanes == kQuantisedBlocks + 1, "the last lanes hold no block");
  std::uint32_t largest_pair = 0;
#pragma unroll
  for (const uint4& vector : part.v) {
    for (const std::uint32_t word : {vector.x, vector.y, vector.z, vector.w}) {
      largest_pair = larger_pair(largest_pair, word & 0x7fff7fffU);
    }
  }
#pragma unroll
  for (int step = 1; step < kLanes; step *= 2) {
    largest_pair = larger_pair(largest_pair, __shfl_xor_sync(kFullWarp, largest_pair, step));
  }
  const float largest = fmaxf(__uint_as_float(largest_pair << 16), __uint_as_float(largest_pair & 0xffff0000U));
  const fp8::BlockScale scale = fp8::scale_of_block(largest, powers_of_two);
  const int block = lane_id() / kLanes;
  if (block < kQuantisedBlocks) {
#pragma unroll
    for (int i = 0; i < UnquantisedPart::kVectors; ++i) {
      float values[kElements];
      Bf16Format::unpack(part.v[i], values);
      *reinterpret_cast<uint2*>(out.elements + UnquantisedPart::first(i)) = to_fp8(values, scale.inverse);
    }
  }
  if (lane_id() % kLanes == 0) {
    const bool is_there = block * static_cast<int>(kScaleBlockElements) < num_elements;
    out.scales[block] = is_there ? __float_as_uint(scale.scale) : 0U;
  }
  __syncwarp();
}

/// The same, of elements that lie from `row` on.
__device__ inline void quantise(const std::byte* row, int num_elements, bool aligned, bool powers_of_two,
                                QuantisedPart& out) {
  UnquantisedPart part;
  part.load(row, num_elements, aligned);
  quantise(part, num_elements, powers_of_two, out);
}

}  // namespace epistle::cuda
