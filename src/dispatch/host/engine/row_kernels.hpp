// The loops over the elements of a row, vectorised with Google Highway and chosen at run time for the processor. They
// know nothing of ranks or groups. All arithmetic follows the order of sums in epistle/dispatcher.hpp, so every target
// gives the same bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "epistle/types.hpp"

namespace epistle::host {

enum class StoreMode : std::int32_t {
  kCached,     ///< ordinary stores: the reader finds the data in a cache
  kStreaming,  ///< non-temporal stores: half the memory traffic for data larger than the caches. Call store_fence()
               ///< before another rank is told that the data is there.
};

/// Copies `num_bytes` from `source` to `target`.
void copy_row(const std::byte* source, std::byte* target, std::size_t num_bytes, StoreMode mode) noexcept;

/// Makes streaming stores visible before any later store of this thread.
void store_fence() noexcept;

/// One row of a sum.
struct SumTerm {
  const std::byte* row = nullptr;
  float weight = 1.0F;
};

struct SumJob {
  std::span<const SumTerm> terms;
  /// Ends of groups in `terms`, ascending, the last equal to terms.size(). Each group is summed and rounded to the
  /// payload type, then the groups are summed. No groups: a flat sum, rounded once.
  std::span<const std::int32_t> group_ends;
  bool weighted = false;
  DType dtype = DType::kBf16;  ///< kBf16, kFp16 or kFp32
  std::byte* out = nullptr;
  std::size_t num_bytes = 0;  ///< of a row; a multiple of 16
  StoreMode mode = StoreMode::kCached;
};

/// out = sum of the terms; +0 without terms.
void sum_rows(const SumJob& job) noexcept;

/// target = round(weight * source), element by element; source and target may be equal.
void scale_row(DType dtype, const std::byte* source, float weight, std::byte* target, std::size_t num_bytes) noexcept;

/// Dot product in fp32, 16 lanes (see Dispatcher::combine_backward).
[[nodiscard]] float dot_rows(DType dtype, const std::byte* a, const std::byte* b, std::size_t num_bytes) noexcept;

/// Applies the setting EPISTLE_SIMD, once per value. Throws kInvalidArgument that lists the names this processor has.
/// Called before rows are moved; the loops above only use what was chosen.
void configure_simd();

/// The instruction set in use ("AVX3", "NEON", ...).
[[nodiscard]] std::string simd_target_name();

/// For tests: the instruction sets that this processor can run, and a way to use just one ("" = the best again).
[[nodiscard]] std::vector<std::string> simd_target_names();
void use_simd_target(const std::string& name);

}  // namespace epistle::host
