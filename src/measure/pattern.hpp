// Reproducible row contents: any rank can compute any rank's rows, so outputs are checked without keeping all inputs.
#pragma once

#include <cstddef>
#include <cstdint>

#include "epistle/types.hpp"

namespace epistle {

/// Tells apart what rows are for.
enum class RowStream : std::uint32_t { kPayload = 1, kScales = 2, kExpertOutput = 3 };

struct RowKey {
  std::uint64_t seed = 1;
  RowStream stream = RowStream::kPayload;
  std::int32_t rank = 0;
  std::int64_t row = 0;
};

/// Fills `target` with pseudo-random bytes.
void fill_bytes(const RowKey& key, std::byte* target, std::int64_t num_bytes) noexcept;

/// Fills `target` with finite values of `dtype` (kBf16, kFp16, kFp32) of magnitude 1/8 to 2 and random sign and
/// mantissa: sums of them round, so that a wrong order of additions shows.
void fill_values(const RowKey& key, DType dtype, std::byte* target, std::int64_t num_bytes) noexcept;

}  // namespace epistle
