// What shapes the dispatchers of others take, as values: used by the rules of a selection and by the check of a
// configuration.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

namespace epistle::limits {

// DeepEP V1: the numbers of ranks that its kernels are compiled for (DeepEP, csrc/kernels/launch.cuh, 2026-08).
inline constexpr std::array<std::int32_t, 12> kDeepEpRanks = {2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 144, 160};
/// Hidden sizes of its low-latency kernels.
inline constexpr std::array<std::int64_t, 8> kDeepEpLowLatencyHidden = {2048, 2560, 3072, 4096, 5120, 6144, 7168, 8192};
inline constexpr std::int32_t kDeepEpLowLatencyMaxTopK = 11;
/// Entries of a queue of NVSHMEM unless NVSHMEM_QP_DEPTH says it; twice the tokens of a call and one more must fit.
inline constexpr std::int64_t kNvshmemQueueDepth = 1024;
inline constexpr std::int32_t kDeepEpDefaultSms = 20;
/// Bytes that a row of its throughput kernels must be a multiple of.
inline constexpr std::int64_t kDeepEpRowBytes = 16;

// HybridEP (branch hybrid-ep of DeepEP, 2026-08).
inline constexpr std::int64_t kHybridEpHiddenBf16 = 16;
inline constexpr std::int64_t kHybridEpHiddenFp8 = 512;
inline constexpr std::int32_t kHybridEpExpertsPerDomain = 4;
inline constexpr std::int32_t kHybridEpMaxDomainRanks = 72;
inline constexpr std::int64_t kHybridEpMaxTokensMultiDomain = 21'844;
/// SMs that it takes where none are given: one domain, several domains; and before Megatron core 0.20.
inline constexpr std::int32_t kHybridEpSmsOneDomain = 24;
inline constexpr std::int32_t kHybridEpSmsManyDomains = 8;
inline constexpr std::int32_t kHybridEpSmsOld = 16;
inline constexpr std::int32_t kHybridEpSmsHarness = 32;

// NCCL EP 0.1 (2026-08).
inline constexpr std::int32_t kNcclEpMaxRanks = 64;
inline constexpr std::int64_t kNcclEpMaxTokens = 8192;
inline constexpr std::int32_t kNcclEpMaxTopK = 9;
// Its kernels come from DeepEP: the hidden sizes of kDeepEpLowLatencyHidden.

// Epistle on CUDA.
inline constexpr std::int32_t kEpistleMaxRanks = 72;

/// Every DeepEP-class kernel aborted above this many ranks on EFA (2026-08).
inline constexpr std::int32_t kEfaMaxRanks = 64;

template <typename Value, std::size_t kSize>
[[nodiscard]] constexpr bool is_one_of(const std::array<Value, kSize>& values, Value value) noexcept {
  return std::find(values.begin(), values.end(), value) != values.end();
}

}  // namespace epistle::limits
