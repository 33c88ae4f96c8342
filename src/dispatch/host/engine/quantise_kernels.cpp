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

/// The largest magnitude of a block as bf16 bits: these are ordered as the values are. NaNs count as 0.
HWY_INLINE std::uint16_t largest_magnitude(const std::byte* source, std::size_t num_elements) {
  std::uint16_t largest = 0;
  const auto add = [&](auto d, auto magnitudes) HWY_ATTR {
    largest = std::max(largest, static_cast<std::uint16_t>(hn::GetLane(hn::MaxOfLanes(d, magnitudes))));
  };
  const auto magnitudes_at = [&](auto d, std::size_t offset) HWY_ATTR {
    const auto magnitude = hn::And(hn::LoadU(d, reinterpret_cast<const std::uint16_t*>(source) + offset),
                                   hn::Set(d, std::uint16_t{0x7fff}));
    return hn::IfThenZeroElse(hn::Gt(magnitude, hn::Set(d, std::uint16_t{0x7f80})), magnitude);
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

/// e4m3 of x * inverse in the low byte of every word.
template <class D>
HWY_INLINE hn::Vec<D> to_e4m3(D d, hn::Vec<hn::RebindToFloat<D>> value, float inverse) {
  const hn::RebindToFloat<D> df;
  const auto splat = [&](std::uint32_t bits) HWY_ATTR { return hn::Set(d, bits); };
  const auto product = hn::BitCast(d, hn::Mul(value, hn::Set(df, inverse)));
  const auto magnitude = hn::And(product, splat(0x7fffffffU));
  const auto sign = hn::And(hn::ShiftRight<24>(product), splat(0x80U));
  // As integers, which order magnitudes as their values, infinity included.
  const auto clamped = hn::Min(magnitude, splat(fp8::bits_of(fp8::kLargest)));
  constexpr std::int32_t kDropped = fp8::kMantissaBits - 3;
  const auto last_kept = hn::And(hn::ShiftRight<kDropped>(clamped), splat(1));
  constexpr std::uint32_t kRebias = static_cast<std::uint32_t>(fp8::kExponentBias - 7) << fp8::kMantissaBits;
  const auto normal =
      hn::ShiftRight<kDropped>(hn::Add(hn::Add(clamped, last_kept), splat((1U << (kDropped - 1)) - 1U - kRebias)));
  // Below 2^-6 multiples of 2^-9 are left: what the adder rounds to where the last bit of a sum is that.
  const auto one_and_a_bit = splat(fp8::bits_of(16384.0F));
  const auto subnormal =
      hn::Sub(hn::BitCast(d, hn::Add(hn::BitCast(df, clamped), hn::BitCast(df, one_and_a_bit))), one_and_a_bit);
  const auto is_normal = hn::Gt(clamped, splat(fp8::bits_of(0.015625F) - 1U));
  const auto rounded = hn::Or(hn::IfThenElse(is_normal, normal, subnormal), sign);
  return hn::IfThenElse(hn::Gt(magnitude, splat(fp8::kInfinity)), splat(fp8::kNanBits), rounded);
}

/// Two elements of every word, in the halves of a vector.
template <class D>
HWY_INLINE void quantise_words(D d, const std::byte* source, float inverse, std::byte* target) {
  const hn::RebindToFloat<D> df;
  const auto words = hn::LoadU(d, reinterpret_cast<const std::uint32_t*>(source));
  const auto even = to_e4m3(d, hn::BitCast(df, hn::ShiftLeft<16>(words)), inverse);
  const auto odd = to_e4m3(d, hn::BitCast(df, hn::And(words, hn::Set(d, 0xffff0000U))), inverse);
  const hn::Rebind<std::uint16_t, D> halves;
  hn::StoreU(hn::TruncateTo(halves, hn::Or(even, hn::ShiftLeft<8>(odd))), halves,
             reinterpret_cast<std::uint16_t*>(target));
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

void quantise_row_on_target(const QuantiseJob& job) {
  std::byte* scales = job.scales;
  const std::int64_t scale_bytes = fp8::scale_row_bytes(job.hidden, job.format);
  for (std::int64_t begin = 0; begin < job.hidden; begin += kScaleBlockElements) {
    const auto num_elements = static_cast<std::size_t>(std::min(kScaleBlockElements, job.hidden - begin));
    const std::uint32_t largest = largest_magnitude(job.source + 2 * begin, num_elements);
    const fp8::BlockScale scale = fp8::scale_of_block(fp8::from_bits(largest << 16), job.powers_of_two);
    if (job.format == ScaleFormat::kFp32) {
      std::memcpy(scales, &scale.scale, sizeof(scale.scale));
      scales += sizeof(scale.scale);
    } else {
      *scales++ = static_cast<std::byte>(scale.exponent_byte());
    }
    quantise_block(job.source + 2 * begin, num_elements, scale.inverse, job.row + begin);
  }
  std::fill(scales, job.scales + scale_bytes, std::byte{0});
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
