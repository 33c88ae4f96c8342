// Sums of bf16 rows by the instructions that round to bf16 (AVX512_BF16), where the processor has them: a quarter of
// the loop of row_kernels.cpp is rounding. The instructions take subnormal numbers for zero and keep the bits of a NaN,
// and a sum that starts with its first term may be -0 where the contract has +0; such sums are left to that loop.
#pragma once

#include <cstddef>

#include "dispatch/host/engine/row_kernels.hpp"

namespace epistle::host {

/// Of what is summed at once.
inline constexpr std::size_t kNativeSumBytes = 64;

[[nodiscard]] bool has_native_bf16_sums() noexcept;

/// Sums rows of bf16 from byte `begin` on, which is a multiple of kNativeSumBytes, and returns where it stopped: where
/// less than kNativeSumBytes are left, or at the first of them that have to be summed otherwise. Stores are cached. The
/// job has terms; only where has_native_bf16_sums().
[[nodiscard]] std::size_t sum_bf16_natively(const SumJob& job, std::size_t begin) noexcept;

}  // namespace epistle::host
