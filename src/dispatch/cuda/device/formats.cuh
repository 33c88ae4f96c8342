// Elements of rows that are summed: 16 bytes at a time to fp32 and back, by the contract in epistle/dispatcher.hpp
// (round to nearest even; a NaN becomes the quiet NaN of its type with no other bits set). Compiled with -fmad=false: a
// product is rounded before it is added.
#pragma once

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "epistle/types.hpp"

namespace epistle::cuda {

/// NaNs are rare: one test for eight values, two at a time, and the repair only where it says so.
__device__ inline bool any_nan(const float (&v)[8]) {
  std::uint32_t found;
  asm("{\n.reg .pred p;\n"
      "setp.nan.f32 p, %1, %2;\n"
      "setp.nan.or.f32 p, %3, %4, p;\n"
      "setp.nan.or.f32 p, %5, %6, p;\n"
      "setp.nan.or.f32 p, %7, %8, p;\n"
      "selp.u32 %0, 1, 0, p;\n}\n"
      : "=r"(found)
      : "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3]), "f"(v[4]), "f"(v[5]), "f"(v[6]), "f"(v[7]));
  return found != 0;
}

/// The hardware's NaN has all mantissa bits set; `kFlip` are the bits that the contract's NaN has not.
template <std::uint32_t kHardwareNan, std::uint32_t kFlip>
__device__ inline std::uint32_t canonical_halves(std::uint32_t word) {
  if ((word & 0xffffU) == kHardwareNan) word ^= kFlip;
  if ((word >> 16) == kHardwareNan) word ^= kFlip << 16;
  return word;
}

struct Bf16Format {
  static constexpr int kElements = 8;  // per 16 bytes
  __device__ static void unpack(const uint4& v, float (&out)[kElements]) {
    const std::uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      out[2 * i] = __uint_as_float(words[i] << 16);
      out[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000U);
    }
  }
  __device__ static uint4 pack(const float (&in)[kElements]) {
    std::uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(in[2 * i], in[2 * i + 1]);
      words[i] = *reinterpret_cast<const std::uint32_t*>(&pair);
    }
    if (any_nan(in)) {
#pragma unroll
      for (std::uint32_t& word : words) word = canonical_halves<0x7fffU, 0x003fU>(word);
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
  }
};

struct Fp16Format {
  static constexpr int kElements = 8;
  __device__ static void unpack(const uint4& v, float (&out)[kElements]) {
    const std::uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(&words[i]));
      out[2 * i] = pair.x;
      out[2 * i + 1] = pair.y;
    }
  }
  __device__ static uint4 pack(const float (&in)[kElements]) {
    std::uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const __half2 pair = __floats2half2_rn(in[2 * i], in[2 * i + 1]);
      words[i] = *reinterpret_cast<const std::uint32_t*>(&pair);
    }
    if (any_nan(in)) {
#pragma unroll
      for (std::uint32_t& word : words) word = canonical_halves<0x7fffU, 0x01ffU>(word);
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
  }
};

struct Fp32Format {
  static constexpr int kElements = 4;
  __device__ static void unpack(const uint4& v, float (&out)[kElements]) {
    out[0] = __uint_as_float(v.x);
    out[1] = __uint_as_float(v.y);
    out[2] = __uint_as_float(v.z);
    out[3] = __uint_as_float(v.w);
  }
  __device__ static std::uint32_t canonical(float value) { return isnan(value) ? 0x7fc00000U : __float_as_uint(value); }
  __device__ static uint4 pack(const float (&in)[kElements]) {
    return make_uint4(canonical(in[0]), canonical(in[1]), canonical(in[2]), canonical(in[3]));
  }
};

/// What `use(format)` returns for the format of a type.
template <typename Use>
inline auto with_format(DType dtype, const Use& use) {
  switch (dtype) {
    case DType::kBf16:
      return use(Bf16Format{});
    case DType::kFp16:
      return use(Fp16Format{});
    default:
      return use(Fp32Format{});
  }
}

}  // namespace epistle::cuda
