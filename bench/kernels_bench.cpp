// The row loops of the host device, one thread: copies and sums of rows that lie in memory or in a cache.
#include <cstddef>
#include <cstdint>
#include <vector>

#include <benchmark/benchmark.h>

#include "dispatch/host/engine/row_kernels.hpp"

namespace epistle::bench {
namespace {

constexpr std::int64_t kRowBytes = 4096;

/// Rows in all, for a working set of `total_bytes`. Values near 1 in every type: subnormal ones are slow on some
/// processors.
std::vector<std::byte> make_rows(std::int64_t total_bytes) {
  return std::vector<std::byte>(static_cast<std::size_t>(total_bytes), std::byte{0x3c});
}

void copy_rows(benchmark::State& state, host::StoreMode mode) {
  const std::int64_t num_rows = state.range(0) / kRowBytes;
  const std::vector<std::byte> source = make_rows(num_rows * kRowBytes);
  std::vector<std::byte> target = make_rows(num_rows * kRowBytes);
  for ([[maybe_unused]] const auto iteration : state) {
    for (std::int64_t row = 0; row < num_rows; ++row) {
      host::copy_row(source.data() + row * kRowBytes, target.data() + row * kRowBytes, kRowBytes, mode);
    }
    host::store_fence();
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(2 * num_rows * kRowBytes * state.iterations());
}

void sum_rows(benchmark::State& state, DType dtype, host::StoreMode mode) {
  constexpr std::int64_t kTerms = 2;
  const std::int64_t num_rows = state.range(0) / kRowBytes / (kTerms + 1);
  const std::vector<std::byte> source = make_rows(kTerms * num_rows * kRowBytes);
  std::vector<std::byte> out = make_rows(num_rows * kRowBytes);
  for ([[maybe_unused]] const auto iteration : state) {
    for (std::int64_t row = 0; row < num_rows; ++row) {
      const host::SumTerm terms[kTerms] = {{source.data() + row * kRowBytes, 0.5F},
                                           {source.data() + (num_rows + row) * kRowBytes, 0.25F}};
      host::sum_rows({.terms = terms,
                      .group_ends = {},
                      .weighted = true,
                      .dtype = dtype,
                      .out = out.data() + row * kRowBytes,
                      .num_bytes = kRowBytes,
                      .mode = mode});
    }
    host::store_fence();
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed((kTerms + 1) * num_rows * kRowBytes * state.iterations());
}

constexpr std::int64_t kCacheBytes = 256 << 10;
constexpr std::int64_t kMemoryBytes = 96 << 20;

BENCHMARK_CAPTURE(copy_rows, cached, host::StoreMode::kCached)->Arg(kCacheBytes)->Arg(kMemoryBytes);
BENCHMARK_CAPTURE(copy_rows, streaming, host::StoreMode::kStreaming)->Arg(kCacheBytes)->Arg(kMemoryBytes);
BENCHMARK_CAPTURE(sum_rows, bf16_cached, DType::kBf16, host::StoreMode::kCached)->Arg(kCacheBytes)->Arg(kMemoryBytes);
BENCHMARK_CAPTURE(sum_rows, bf16_streaming, DType::kBf16, host::StoreMode::kStreaming)->Arg(kMemoryBytes);
BENCHMARK_CAPTURE(sum_rows, fp16_cached, DType::kFp16, host::StoreMode::kCached)->Arg(kCacheBytes)->Arg(kMemoryBytes);
BENCHMARK_CAPTURE(sum_rows, fp32_cached, DType::kFp32, host::StoreMode::kCached)->Arg(kCacheBytes)->Arg(kMemoryBytes);

}  // namespace
}  // namespace epistle::bench

BENCHMARK_MAIN();
