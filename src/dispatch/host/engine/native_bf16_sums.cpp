#include "dispatch/host/engine/native_bf16_sums.hpp"

#include <cstdint>

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

namespace epistle::host {
namespace {

#define EPISTLE_NATIVE_BF16 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))

/// Elements as fp32: the even ones of every pair, and the odd ones.
struct Pairs {
  __m512 even;
  __m512 odd;
};

/// Of a vector; some of the functions for these operations have the compiler warn of what they leave undefined.
using Words = std::uint32_t __attribute__((vector_size(64)));

EPISTLE_NATIVE_BF16 inline Pairs unpack(__m512i elements) {
  const auto words = reinterpret_cast<Words>(elements);
  return {reinterpret_cast<__m512>(words << 16), reinterpret_cast<__m512>(words & 0xffff0000U)};
}

EPISTLE_NATIVE_BF16 inline Pairs add(Pairs a, Pairs b) {
  return {_mm512_add_ps(a.even, b.even), _mm512_add_ps(a.odd, b.odd)};
}

template <bool kWeighted>
EPISTLE_NATIVE_BF16 inline Pairs load(const SumTerm& term, std::size_t offset) {
  Pairs pairs = unpack(_mm512_loadu_si512(term.row + offset));
  if constexpr (kWeighted) {
    const __m512 weight = _mm512_set1_ps(term.weight);
    pairs = {_mm512_mul_ps(weight, pairs.even), _mm512_mul_ps(weight, pairs.odd)};
  }
  return pairs;
}

/// Elements that the instructions round to other bits than the contract, or whose sign may be another.
EPISTLE_NATIVE_BF16 inline __mmask16 find_special(Pairs sums) {
  constexpr int kQuietNan = 0x01;
  constexpr int kMinusZero = 0x04;
  constexpr int kSubnormal = 0x20;
  constexpr int kSignallingNan = 0x80;
  constexpr int kSpecial = kQuietNan | kMinusZero | kSubnormal | kSignallingNan;
  return static_cast<__mmask16>(_mm512_fpclass_ps_mask(sums.even, kSpecial) |
                                _mm512_fpclass_ps_mask(sums.odd, kSpecial));
}

EPISTLE_NATIVE_BF16 inline __m512i pack(Pairs sums) {
  // Where of (all even, all odd) the elements of a row are.
  alignas(64) static constexpr std::uint16_t kOrder[] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                         8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const auto rounded = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(sums.odd, sums.even));
  return _mm512_permutexvar_epi16(_mm512_load_si512(kOrder), rounded);
}

/// One or two terms: their addresses and weights stay in registers.
template <bool kWeighted, int kNumTerms>
EPISTLE_NATIVE_BF16 std::size_t sum_few(const SumJob& job, std::size_t offset) {
  const SumTerm first = job.terms[0];
  const SumTerm second = job.terms[kNumTerms - 1];
  std::byte* const out = job.out;
  const std::size_t end = job.num_bytes;
  for (; offset + kNativeSumBytes <= end; offset += kNativeSumBytes) {
    Pairs sums = load<kWeighted>(first, offset);
    if constexpr (kNumTerms == 2) sums = add(sums, load<kWeighted>(second, offset));
    if (find_special(sums) != 0) [[unlikely]]
      break;
    _mm512_storeu_si512(out + offset, pack(sums));
  }
  return offset;
}

/// Terms [begin, end), which are some.
template <bool kWeighted>
EPISTLE_NATIVE_BF16 inline Pairs sum_terms(const SumJob& job, std::size_t begin, std::size_t end, std::size_t offset) {
  Pairs sums = load<kWeighted>(job.terms[begin], offset);
  for (std::size_t term = begin + 1; term < end; ++term) sums = add(sums, load<kWeighted>(job.terms[term], offset));
  return sums;
}

template <bool kWeighted>
EPISTLE_NATIVE_BF16 std::size_t sum_any(const SumJob& job, std::size_t offset) {
  for (; offset + kNativeSumBytes <= job.num_bytes; offset += kNativeSumBytes) {
    const bool is_flat = job.group_ends.empty();
    auto end = is_flat ? job.terms.size() : static_cast<std::size_t>(job.group_ends[0]);
    Pairs sums = sum_terms<kWeighted>(job, 0, end, offset);
    __mmask16 special = find_special(sums);
    for (std::size_t group = 1; group < job.group_ends.size(); ++group) {
      const std::size_t begin = end;
      end = static_cast<std::size_t>(job.group_ends[group]);
      const Pairs next = sum_terms<kWeighted>(job, begin, end, offset);
      if (group == 1) sums = unpack(pack(sums));
      special = static_cast<__mmask16>(special | find_special(next));
      sums = add(sums, unpack(pack(next)));
    }
    special = static_cast<__mmask16>(special | find_special(sums));
    if (special != 0) [[unlikely]]
      break;
    _mm512_storeu_si512(job.out + offset, pack(sums));
  }
  return offset;
}

template <bool kWeighted>
std::size_t sum_natively(const SumJob& job, std::size_t begin) {
  if (job.group_ends.size() > 1 || job.terms.size() > 2) return sum_any<kWeighted>(job, begin);
  // One group is rounded once more, to itself.
  return job.terms.size() == 1 ? sum_few<kWeighted, 1>(job, begin) : sum_few<kWeighted, 2>(job, begin);
}

}  // namespace

bool has_native_bf16_sums() noexcept {
  static const bool has = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vl") &&
                          __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
  return has;
}

std::size_t sum_bf16_natively(const SumJob& job, std::size_t begin) noexcept {
  return job.weighted ? sum_natively<true>(job, begin) : sum_natively<false>(job, begin);
}

}  // namespace epistle::host

#else

namespace epistle::host {

bool has_native_bf16_sums() noexcept { return false; }

std::size_t sum_bf16_natively(const SumJob& /*job*/, std::size_t begin) noexcept { return begin; }

}  // namespace epistle::host

#endif
