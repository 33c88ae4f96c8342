#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "dispatch/host/engine/quantise_kernels.cpp"
#include "dispatch/host/engine/quantise_kernels.hpp"

#include <algorithm>
#include <cstring>

#include <hwy/foreach_target.h>  // compiles the rest of this file once per instruction set
#include <hwy/highway.h>

#include "layout/fp8_blocks.hpp"

HWY_BEFORE_NAMESPACE();
namespace epistle::host {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// The search for the largest magnitude takes elements as 16-bit halves; they are multiplied as 32-bit words of two (the
// even one in the low half). Both have wide vectors and, with the same code, 16-byte ones for the end of a block.
using WideHalves = hn::ScalableTag<std::uint16_t>;
using EightHalves = hn::CappedTag<std::uint16_t, 8>;
using WideWords = hn::ScalableTag<std::uint32_t>;
using FourWords = hn::CappedTag<std::uint32_t, 4>;

/// The largest magnitude of a block as bf16 bits: these are ordered as the values are, NaNs the largest.
HWY_INLINE std::uint16_t largest_magnitude(const std::byte* source, std::size_t num_elements) {
  std::uint16_t largest = 0;
  const auto magnitudes_at = [&](auto d, std::size_t offset) HWY_ATTR {
    const auto halves = hn::LoadU(d, reinterpret_cast<const std::uint16_t*>(source) + offset);
    return hn::And(halves, hn::Set(d, std::uint16_t{0x7fff}));
  };
  const auto add = [&](auto d, auto magnitudes) HWY_ATTR {
    largest = std::max(largest, static_cast<std::uint16_t>(hn::GetLane(hn::MaxOfLanes(d, magnitudes))));
  };
  const WideHalves wide;
  const EightHalves eight;
  auto widest = hn::Zero(wide);
  std::size_t offset = 0;
  for (; offset + hn::Lanes(wide) <= num_elements; offset += hn::Lanes(wide)) {
    widest = hn::Max(widest, magnitudes_at(wide, offset));
  }
  add(wide, widest);
  for (; offset + hn::Lanes(eight) <= num_elements; offset += hn::Lanes(eight)) {
    add(eight, magnitudes_at(eight, offset));
  }
  return largest;
}

// What is added to the magnitude bits of two elements in a word when all else is done: see magnitude_bits().
constexpr std::uint32_t kExponentOfStep = fp8::kExponentBias - 6;  // exponent field of 2^-6, the least normal e4m3
constexpr std::uint32_t kRebias = 0U - (kExponentOfStep << 3);

/// The e4m3 of a magnitude of at most 448, without kRebias. Added to a number of 2^20 times its power of two, the adder
/// rounds it to three bits behind the first; what is less than 2^-6 counts as if it were that, so it is rounded to
/// multiples of 2^-9. What is left behind that number is the mantissa with its first bit, to which the exponent is
/// added.
template <class D>
HWY_INLINE hn::Vec<D> magnitude_bits(D d, hn::Vec<hn::RebindToFloat<D>> magnitude) {
  const hn::RebindToFloat<D> df;
  const auto power = hn::And(hn::BitCast(d, hn::Max(magnitude, hn::Set(df, 0.015625F))), hn::Set(d, fp8::kInfinity));
  const auto anchor = hn::Add(power, hn::Set(d, 20U << fp8::kMantissaBits));
  const auto sum = hn::BitCast(d, hn::Add(magnitude, hn::BitCast(df, anchor)));
  return hn::Add(hn::Sub(sum, anchor), hn::ShiftRight<fp8::kMantissaBits - 3>(power));
}

/// Two elements of every word, in the halves of a vector.
template <class D>
HWY_INLINE void quantise_words(D d, const std::byte* source, float inverse, std::byte* target) {
  const hn::RebindToFloat<D> df;
  const auto splat = [&](std::uint32_t bits) HWY_ATTR { return hn::Set(d, bits); };
  const auto factor = hn::Set(df, inverse);
  const auto words = hn::LoadU(d, reinterpret_cast<const std::uint32_t*>(source));
  const auto magnitudes = hn::And(words, splat(0x7fff7fffU));
  const auto even = magnitude_bits(d, hn::Mul(hn::BitCast(df, hn::ShiftLeft<16>(magnitudes)), factor));
  const auto odd = magnitude_bits(d, hn::Mul(hn::BitCast(df, hn::And(magnitudes, splat(0xffff0000U))), factor));
  const auto pairs = hn::Add(hn::Add(even, hn::ShiftLeft<8>(odd)), splat(kRebias + (kRebias << 8)));
  const auto signs =
      hn::Or(hn::And(hn::ShiftRight<8>(words), splat(0x80U)), hn::And(hn::ShiftRight<16>(words), splat(0x8000U)));
  const hn::Rebind<std::uint16_t, D> halves;
  hn::StoreU(hn::TruncateTo(halves, hn::Or(pairs, signs)), halves, reinterpret_cast<std::uint16_t*>(target));
}

HWY_INLINE void quantise_block(const std::byte* source, std::size_t num_elements, float inverse, std::byte* target) {
  const WideWords wide;
  const FourWords four;
  std::size_t done = 0;
  for (; done + 2 * hn::Lanes(wide) <= num_elements; done += 2 * hn::Lanes(wide)) {
    quantise_words(wide, source + 2 * done, inverse, target + done);
  }
  for (; done + 2 * hn::Lanes(four) <= num_elements; done += 2 * hn::Lanes(four)) {
    quantise_words(four, source + 2 * done, inverse, target + done);
  }
}

/// Element by element, for a block with an infinity or a NaN in it. Returns its scale.
fp8::BlockScale quantise_special_block(const std::byte* source, std::size_t num_elements, bool powers_of_two,
                                       std::byte* target) {
  const auto element = [&](std::size_t idx) {
    std::uint16_t half = 0;
    std::memcpy(&half, source + 2 * idx, sizeof(half));
    return fp8::from_bits(static_cast<std::uint32_t>(half) << 16);
  };
  float largest = 0.0F;
  for (std::size_t idx = 0; idx < num_elements; ++idx) {
    const float magnitude = fp8::from_bits(fp8::bits_of(element(idx)) & 0x7fffffffU);
    if (magnitude > largest) largest = magnitude;
  }
  const fp8::BlockScale scale = fp8::scale_of_block(largest, powers_of_two);
  for (std::size_t idx = 0; idx < num_elements; ++idx) {
    target[idx] = static_cast<std::byte>(fp8::to_e4m3(element(idx) * scale.inverse));
  }
  return scale;
}

void quantise_row_on_target(const QuantiseJob& job) {
  // The largest magnitudes of some blocks come first: the processor has none of the waits between them then.
  constexpr std::int64_t kBlocksAtOnce = 8;
  std::byte* scales = job.scales;
  const std::int64_t num_blocks = fp8::num_scales(job.hidden);
  for (std::int64_t first = 0; first < num_blocks; first += kBlocksAtOnce) {
    const std::int64_t end = std::min(first + kBlocksAtOnce, num_blocks);
    const auto num_elements = [&](std::int64_t block) {
      return static_cast<std::size_t>(std::min(kScaleBlockElements, job.hidden - block * kScaleBlockElements));
    };
    std::uint16_t largest[kBlocksAtOnce];
    for (std::int64_t block = first; block < end; ++block) {
      largest[block - first] = largest_magnitude(job.source + 2 * block * kScaleBlockElements, num_elements(block));
    }
    for (std::int64_t block = first; block < end; ++block) {
      const std::byte* const source = job.source + 2 * block * kScaleBlockElements;
      std::byte* const target = job.row + block * kScaleBlockElements;
      const std::uint32_t magnitude = static_cast<std::uint32_t>(largest[block - first]) << 16;
      fp8::BlockScale scale;
      if (magnitude < fp8::kInfinity) {
        scale = fp8::scale_of_block(fp8::from_bits(magnitude), job.powers_of_two);
        quantise_block(source, num_elements(block), scale.inverse, target);
      } else {
        scale = quantise_special_block(source, num_elements(block), job.powers_of_two, target);
      }
      if (job.format == ScaleFormat::kFp32) {
        std::memcpy(scales, &scale.scale, sizeof(scale.scale));
        scales += sizeof(scale.scale);
      } else {
        *scales++ = static_cast<std::byte>(scale.exponent_byte());
      }
    }
  }
  std::fill(scales, job.scales + fp8::scale_row_bytes(job.hidden, job.format), std::byte{0});
}

}  // namespace HWY_NAMESPACE
}  // namespace epistle::host
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace epistle::host {
namespace {

HWY_EXPORT(quantise_row_on_target);

}  // namespace

void quantise_row(const QuantiseJob& job) noexcept { HWY_DYNAMIC_DISPATCH(quantise_row_on_target)(job); }

}  // namespace epistle::host

#endif  // HWY_ONCE
