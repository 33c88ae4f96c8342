#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "dispatch/host/engine/row_kernels.cpp"
#include "dispatch/host/engine/row_kernels.hpp"

#include <algorithm>
#include <span>

#include <hwy/foreach_target.h>  // compiles the rest of this file once per instruction set
#include <hwy/highway.h>

#include "dispatch/host/engine/native_bf16_sums.hpp"

HWY_BEFORE_NAMESPACE();
namespace epistle::host {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Rows are processed as 32-bit words: one fp32, or two 16-bit elements (the even one in the low half). Every function
// below works on "wide" vectors and, with the same code, on the 16-byte blocks that are left at the end of a row.
using Wide = hn::ScalableTag<std::uint32_t>;
using Block = hn::CappedTag<std::uint32_t, 4>;
inline constexpr std::size_t kBlockBytes = 16;
inline constexpr std::size_t kBlockWords = kBlockBytes / sizeof(std::uint32_t);

template <class D>
using Words = hn::Vec<D>;
template <class D>
using Floats = hn::Vec<hn::RebindToFloat<D>>;

template <class D>
HWY_INLINE Words<D> splat(D d, std::uint32_t value) {
  return hn::Set(d, value);
}

template <class D>
HWY_INLINE Words<D> replace_nan(D d, Floats<D> value, Words<D> bits, std::uint32_t nan) {
  return hn::IfThenElse(hn::RebindMask(d, hn::IsNaN(value)), splat(d, nan), bits);
}

/// The elements of a vector of words: one vector of floats (fp32) or two (16-bit types: even, odd).
struct Fp32Format {
  static constexpr int kParts = 1;
  template <class D>
  static HWY_INLINE Floats<D> unpack(D /*d*/, Words<D> words, int /*part*/) {
    return hn::BitCast(hn::RebindToFloat<D>(), words);
  }
  template <class D>
  static HWY_INLINE Words<D> pack(D d, Floats<D> even, Floats<D> /*odd*/) {
    return replace_nan(d, even, hn::BitCast(d, even), 0x7fc00000);
  }
};

struct Bf16Format {
  static constexpr int kParts = 2;
  template <class D>
  static HWY_INLINE Floats<D> unpack(D d, Words<D> words, int part) {
    const Words<D> bits = part == 0 ? hn::ShiftLeft<16>(words) : hn::And(words, splat(d, 0xffff0000));
    return hn::BitCast(hn::RebindToFloat<D>(), bits);
  }
  /// Rounded bits in the upper half of each word; the lower half is left over.
  template <class D>
  static HWY_INLINE Words<D> round(D d, Floats<D> value) {
    const Words<D> bits = hn::BitCast(d, value);
    const Words<D> last_kept = hn::And(hn::ShiftRight<16>(bits), splat(d, 1));
    const Words<D> rounded = hn::Add(hn::Add(bits, splat(d, 0x7fff)), last_kept);
    return replace_nan(d, value, rounded, 0x7fc00000);
  }
  template <class D>
  static HWY_INLINE Words<D> pack(D d, Floats<D> even, Floats<D> odd) {
    return hn::Or(hn::ShiftRight<16>(round(d, even)), hn::And(round(d, odd), splat(d, 0xffff0000)));
  }
};

struct Fp16Format {
  static constexpr int kParts = 2;
  // Exponent biases are 15 (fp16) and 127 (fp32); 13 more mantissa bits in fp32.
  template <class D>
  static HWY_INLINE Floats<D> unpack(D d, Words<D> words, int part) {
    const hn::RebindToFloat<D> df;
    const Words<D> half = part == 0 ? hn::And(words, splat(d, 0xffff)) : hn::ShiftRight<16>(words);
    const Words<D> shifted = hn::ShiftLeft<13>(hn::And(half, splat(d, 0x7fff)));
    const Words<D> exponent = hn::And(shifted, splat(d, 0x7c00U << 13));
    const Words<D> rebiased = hn::Add(shifted, splat(d, (127U - 15U) << 23));
    // Infinity and NaN: move the exponent to all ones.
    const Words<D> special = hn::Add(rebiased, splat(d, (128U - 16U) << 23));
    // Subnormal: build 2^-14 * (1 + mantissa) and take the 2^-14 away again, exactly.
    const Words<D> with_one = hn::Add(rebiased, splat(d, 1U << 23));
    const Words<D> subnormal =
        hn::BitCast(d, hn::Sub(hn::BitCast(df, with_one), hn::BitCast(df, splat(d, 113U << 23))));
    const Words<D> magnitude = hn::IfThenElse(hn::Eq(exponent, splat(d, 0x7c00U << 13)), special,
                                              hn::IfThenElse(hn::Eq(exponent, hn::Zero(d)), subnormal, rebiased));
    const Words<D> sign = hn::ShiftLeft<16>(hn::And(half, splat(d, 0x8000)));
    return hn::BitCast(df, hn::Or(magnitude, sign));
  }
  template <class D>
  static HWY_INLINE Words<D> round(D d, Floats<D> value) {
    const hn::RebindToFloat<D> df;
    const Words<D> bits = hn::BitCast(d, value);
    const Words<D> sign = hn::And(bits, splat(d, 0x80000000U));
    const Words<D> magnitude = hn::Xor(bits, sign);
    // Subnormal results: adding 0.5 lets the adder round at 2^-24, the last bit of 0.5.
    const Words<D> half_one = splat(d, 126U << 23);
    const Words<D> subnormal =
        hn::Sub(hn::BitCast(d, hn::Add(hn::BitCast(df, magnitude), hn::BitCast(df, half_one))), half_one);
    const Words<D> last_kept = hn::And(hn::ShiftRight<13>(magnitude), splat(d, 1));
    // Rebias the exponent (modulo 2^32) and round ties to even; a carry out of the mantissa is right as it is.
    const Words<D> normal =
        hn::ShiftRight<13>(hn::Add(hn::Add(magnitude, splat(d, 0xfffU - ((127U - 15U) << 23))), last_kept));
    const Words<D> finite = hn::IfThenElse(hn::Lt(magnitude, splat(d, 113U << 23)), subnormal, normal);
    const Words<D> rounded = hn::IfThenElse(hn::Lt(magnitude, splat(d, (127U + 16U) << 23)), finite, splat(d, 0x7c00));
    return replace_nan(d, value, hn::Or(rounded, hn::ShiftRight<16>(sign)), 0x7e00);
  }
  template <class D>
  static HWY_INLINE Words<D> pack(D d, Floats<D> even, Floats<D> odd) {
    return hn::Or(round(d, even), hn::ShiftLeft<16>(round(d, odd)));
  }
};

template <class D>
HWY_INLINE Words<D> load(D d, const std::byte* row, std::size_t offset) {
  return hn::LoadU(d, reinterpret_cast<const std::uint32_t*>(row + offset));
}

template <bool kStream, class D>
HWY_INLINE void store(D d, Words<D> words, std::byte* row, std::size_t offset) {
  auto* target = reinterpret_cast<std::uint32_t*>(row + offset);
  if constexpr (kStream) {
    hn::Stream(words, d, target);
  } else {
    hn::StoreU(words, d, target);
  }
}

/// Calls `step(tag, offset, streaming)` over a row: blocks until `out` is aligned for streaming stores, then wide
/// vectors, then the blocks that are left. Returns the bytes covered; a row of an odd size leaves some to the caller.
template <class Step>
HWY_INLINE std::size_t for_each_part(const std::byte* out, std::size_t num_bytes, StoreMode mode, Step step) {
  const Wide wide;
  const std::size_t wide_bytes = hn::Lanes(wide) * sizeof(std::uint32_t);
  // As wide as a block, except on targets whose vectors have a single lane.
  const std::size_t block_bytes = hn::Lanes(Block()) * sizeof(std::uint32_t);
  std::size_t offset = 0;
  const std::size_t misaligned = reinterpret_cast<std::uintptr_t>(out) % wide_bytes;
  if (mode == StoreMode::kStreaming && misaligned % block_bytes == 0) {
    if (misaligned != 0) {
      for (; offset + block_bytes <= num_bytes && offset < wide_bytes - misaligned; offset += block_bytes) {
        step(Block(), offset, std::false_type());
      }
    }
    for (; offset + wide_bytes <= num_bytes; offset += wide_bytes) step(wide, offset, std::true_type());
  } else {
    for (; offset + wide_bytes <= num_bytes; offset += wide_bytes) step(wide, offset, std::false_type());
  }
  for (; offset + block_bytes <= num_bytes; offset += block_bytes) step(Block(), offset, std::false_type());
  return offset;
}

void copy_row_on_target(const std::byte* source, std::byte* target, std::size_t num_bytes, StoreMode mode) {
  std::size_t done = for_each_part(target, num_bytes, mode, [&](auto d, std::size_t offset, auto streaming) HWY_ATTR {
    store<decltype(streaming)::value>(d, load(d, source, offset), target, offset);
  });
  for (; done < num_bytes; ++done) target[done] = source[done];
}

/// Adds one row's elements at `offset` to the sums; `odd` is used by 16-bit types only.
template <class Format, bool kWeighted, class D>
HWY_INLINE void add_term(D d, const SumTerm& term, std::size_t offset, Floats<D>& even, Floats<D>& odd) {
  const hn::RebindToFloat<D> df;
  const Words<D> words = load(d, term.row, offset);
  const auto weighted = [&](Floats<D> value) HWY_ATTR {
    if constexpr (kWeighted) value = hn::Mul(hn::Set(df, term.weight), value);
    return value;
  };
  even = hn::Add(even, weighted(Format::unpack(d, words, 0)));
  if constexpr (Format::kParts == 2) odd = hn::Add(odd, weighted(Format::unpack(d, words, 1)));
}

/// A flat sum of a known number of terms: their addresses and weights stay in registers.
template <class Format, bool kWeighted, std::size_t... kIdx>
void sum_fixed_as(const SumJob& job, std::index_sequence<kIdx...> /*terms*/) {
  const SumTerm terms[] = {job.terms[kIdx]...};
  std::byte* const out = job.out;
  for_each_part(out, job.num_bytes, job.mode, [&](auto d, std::size_t offset, auto streaming) HWY_ATTR {
    using D = decltype(d);
    Floats<D> even = hn::Zero(hn::RebindToFloat<D>());
    Floats<D> odd = even;
    (add_term<Format, kWeighted>(d, terms[kIdx], offset, even, odd), ...);
    store<decltype(streaming)::value>(d, Format::pack(d, even, odd), out, offset);
  });
}

template <class Format, bool kWeighted>
void sum_any_as(const SumJob& job) {
  const SumTerm* terms = job.terms.data();
  for_each_part(job.out, job.num_bytes, job.mode, [&](auto d, std::size_t offset, auto streaming) HWY_ATTR {
    using D = decltype(d);
    const hn::RebindToFloat<D> df;
    Floats<D> even = hn::Zero(df);
    Floats<D> odd = hn::Zero(df);
    if (job.group_ends.empty()) {
      for (const SumTerm& term : job.terms) add_term<Format, kWeighted>(d, term, offset, even, odd);
    }
    std::int32_t idx = 0;
    for (const std::int32_t group_end : job.group_ends) {
      Floats<D> group_even = hn::Zero(df);
      Floats<D> group_odd = hn::Zero(df);
      for (; idx < group_end; ++idx) add_term<Format, kWeighted>(d, terms[idx], offset, group_even, group_odd);
      const Words<D> rounded = Format::pack(d, group_even, group_odd);
      even = hn::Add(even, Format::unpack(d, rounded, 0));
      if constexpr (Format::kParts == 2) odd = hn::Add(odd, Format::unpack(d, rounded, 1));
    }
    store<decltype(streaming)::value>(d, Format::pack(d, even, odd), job.out, offset);
  });
}

template <class Format, bool kWeighted>
void sum_rows_as(const SumJob& job) {
  if (!job.group_ends.empty()) return sum_any_as<Format, kWeighted>(job);
  // One and two ranks per token are what small groups have; more variants cost more compile time than they save time.
  switch (job.terms.size()) {
    case 1:
      return sum_fixed_as<Format, kWeighted>(job, std::make_index_sequence<1>());
    case 2:
      return sum_fixed_as<Format, kWeighted>(job, std::make_index_sequence<2>());
    default:
      return sum_any_as<Format, kWeighted>(job);
  }
}

template <class Format>
void scale_row_as(const std::byte* source, float weight, std::byte* target, std::size_t num_bytes) {
  for_each_part(target, num_bytes, StoreMode::kCached, [&](auto d, std::size_t offset, auto /*streaming*/) HWY_ATTR {
    using D = decltype(d);
    const auto factor = hn::Set(hn::RebindToFloat<D>(), weight);
    const Words<D> words = load(d, source, offset);
    const Floats<D> even = hn::Mul(factor, Format::unpack(d, words, 0));
    Floats<D> odd = even;
    if constexpr (Format::kParts == 2) odd = hn::Mul(factor, Format::unpack(d, words, 1));
    store<false>(d, Format::pack(d, even, odd), target, offset);
  });
}

// The lanes of the contract (element i to lane i mod 16) are 16 floats here; a vector of words covers some of them, and
// which ones depends only on the element's position, so any vector width gives the same sums.
template <class Format>
float dot_rows_as(const std::byte* a, const std::byte* b, std::size_t num_bytes) {
  constexpr std::size_t kLanes = 16;
  const Block d;
  const hn::RebindToFloat<Block> df;
  constexpr std::size_t kBlockElements = kBlockWords * Format::kParts;
  constexpr std::size_t kBlocks = kLanes / kBlockElements;
  HWY_ALIGN float sums[kBlocks][Format::kParts][kBlockWords] = {};
  std::size_t block = 0;
  for (std::size_t offset = 0; offset < num_bytes; offset += kBlockBytes) {
    // One step, except on targets whose vectors have a single lane.
    for (std::size_t word = 0; word < kBlockWords; word += hn::Lanes(d)) {
      const Words<Block> words_a = load(d, a, offset + word * sizeof(std::uint32_t));
      const Words<Block> words_b = load(d, b, offset + word * sizeof(std::uint32_t));
      for (int part = 0; part < Format::kParts; ++part) {
        const auto product = hn::Mul(Format::unpack(d, words_a, part), Format::unpack(d, words_b, part));
        float* target = sums[block][part] + word;
        hn::Store(hn::Add(hn::Load(df, target), product), df, target);
      }
    }
    block = (block + 1) % kBlocks;
  }
  float lanes[kLanes];
  for (std::size_t lane = 0; lane < kLanes; ++lane) {
    const std::size_t in_block = lane % kBlockElements;
    lanes[lane] = sums[lane / kBlockElements][in_block % Format::kParts][in_block / Format::kParts];
  }
  for (std::size_t stride = kLanes / 2; stride > 0; stride /= 2) {
    for (std::size_t lane = 0; lane < stride; ++lane) lanes[lane] += lanes[lane + stride];
  }
  return lanes[0];
}

#if HWY_TARGET == HWY_AVX3
/// The part of a job from byte `begin` to byte `end`.
void sum_part(const SumJob& job, std::size_t begin, std::size_t end, std::span<SumTerm> terms) {
  for (std::size_t idx = 0; idx < job.terms.size(); ++idx) {
    terms[idx] = {.row = job.terms[idx].row + begin, .weight = job.terms[idx].weight};
  }
  SumJob part = job;
  part.terms = terms.first(job.terms.size());
  part.out = job.out + begin;
  part.num_bytes = end - begin;
  return job.weighted ? sum_rows_as<Bf16Format, true>(part) : sum_rows_as<Bf16Format, false>(part);
}

/// Where the processor rounds to bf16 itself. False where it cannot.
bool sum_bf16_rows_natively(const SumJob& job) {
  constexpr std::size_t kMostTerms = 32;
  if (job.mode != StoreMode::kCached || job.terms.empty() || job.terms.size() > kMostTerms) return false;
  if (!has_native_bf16_sums()) return false;
  SumTerm terms[kMostTerms];
  for (std::size_t done = 0; done < job.num_bytes;) {
    done = sum_bf16_natively(job, done);
    const std::size_t end = std::min(done + kNativeSumBytes, job.num_bytes);
    if (done < end) sum_part(job, done, end, terms);
    done = end;
  }
  return true;
}
#else
bool sum_bf16_rows_natively(const SumJob& /*job*/) { return false; }
#endif

void sum_rows_on_target(const SumJob& job) {
  const auto run = [&](auto format) HWY_ATTR {
    using Format = decltype(format);
    return job.weighted ? sum_rows_as<Format, true>(job) : sum_rows_as<Format, false>(job);
  };
  switch (job.dtype) {
    case DType::kBf16:
      if (sum_bf16_rows_natively(job)) return;
      return run(Bf16Format());
    case DType::kFp16:
      return run(Fp16Format());
    default:
      return run(Fp32Format());
  }
}

void scale_row_on_target(DType dtype, const std::byte* source, float weight, std::byte* target, std::size_t num_bytes) {
  switch (dtype) {
    case DType::kBf16:
      return scale_row_as<Bf16Format>(source, weight, target, num_bytes);
    case DType::kFp16:
      return scale_row_as<Fp16Format>(source, weight, target, num_bytes);
    default:
      return scale_row_as<Fp32Format>(source, weight, target, num_bytes);
  }
}

float dot_rows_on_target(DType dtype, const std::byte* a, const std::byte* b, std::size_t num_bytes) {
  switch (dtype) {
    case DType::kBf16:
      return dot_rows_as<Bf16Format>(a, b, num_bytes);
    case DType::kFp16:
      return dot_rows_as<Fp16Format>(a, b, num_bytes);
    default:
      return dot_rows_as<Fp32Format>(a, b, num_bytes);
  }
}

const char* target_name() { return hwy::TargetName(HWY_TARGET); }

}  // namespace HWY_NAMESPACE
}  // namespace epistle::host
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

#include <atomic>
#include <mutex>

#include <hwy/cache_control.h>
#include <hwy/targets.h>

#include "epistle/error.hpp"

#include "core/numeric.hpp"
#include "core/settings.hpp"

namespace epistle::host {
namespace {

constexpr const char* kAutomaticTarget = "auto";

HWY_EXPORT(copy_row_on_target);
HWY_EXPORT(sum_rows_on_target);
HWY_EXPORT(scale_row_on_target);
HWY_EXPORT(dot_rows_on_target);
HWY_EXPORT(target_name);

/// What the processor can run, best first. Asked for once: Highway's answer shrinks when use_simd_target limits it.
const std::vector<std::int64_t>& available_targets() {
  static const std::vector<std::int64_t> all = hwy::SupportedAndGeneratedTargets();
  return all;
}

}  // namespace

void copy_row(const std::byte* source, std::byte* target, std::size_t num_bytes, StoreMode mode) noexcept {
  HWY_DYNAMIC_DISPATCH(copy_row_on_target)(source, target, num_bytes, mode);
}

void store_fence() noexcept { hwy::FlushStream(); }

void sum_rows(const SumJob& job) noexcept { HWY_DYNAMIC_DISPATCH(sum_rows_on_target)(job); }

void scale_row(DType dtype, const std::byte* source, float weight, std::byte* target, std::size_t num_bytes) noexcept {
  HWY_DYNAMIC_DISPATCH(scale_row_on_target)(dtype, source, weight, target, num_bytes);
}

float dot_rows(DType dtype, const std::byte* a, const std::byte* b, std::size_t num_bytes) noexcept {
  return numeric::canonical_fp32(HWY_DYNAMIC_DISPATCH(dot_rows_on_target)(dtype, a, b, num_bytes));
}

std::string simd_target_name() { return HWY_DYNAMIC_DISPATCH(target_name)(); }

std::vector<std::string> simd_target_names() {
  std::vector<std::string> names;
  for (const auto target : available_targets()) names.emplace_back(hwy::TargetName(target));
  return names;
}

void use_simd_target(const std::string& name) {
  std::int64_t chosen = 0;
  for (const auto target : available_targets()) {
    if (name == hwy::TargetName(target)) chosen = target;
  }
  if (!name.empty() && chosen == 0) {
    std::string known;
    for (const std::string& target : simd_target_names()) known += (known.empty() ? "" : ", ") + target;
    throw Error(ErrorCode::kInvalidArgument,
                "SIMD target '" + name + "' is not available here (EPISTLE_SIMD); available: auto, " + known);
  }
  hwy::SetSupportedTargetsForTest(chosen);  // 0 = every target again
  hwy::GetChosenTarget().DeInit();
}

void configure_simd() {
  static std::mutex mutex;
  static std::string applied = kAutomaticTarget;
  const std::lock_guard lock(mutex);
  const std::string& wanted = settings().simd();
  // Dispatchers that exist already may be running: nothing is touched unless the setting has changed.
  if (wanted == applied) return;
  use_simd_target(wanted == kAutomaticTarget ? "" : wanted);
  applied = wanted;
}

}  // namespace epistle::host

#endif  // HWY_ONCE
