// What the copy engines need beside the heap, and how large it is.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dispatch/cuda/engine/buffer_carver.hpp"
#include "layout/dispatch_layout.hpp"

namespace epistle::cuda {

/// Tokens are packed in up to so many chunks.
inline constexpr std::int32_t kMaxPackChunks = 16;

/// A token that goes to a destination, while the token before it does not.
struct RunStart {
  std::int32_t token;
  std::int32_t row;  ///< at the destination
};

/// Starts that are kept of one destination.
inline constexpr int kMaxRunStarts = 256;

/// Where one rank's rows go, as runs of consecutive tokens; in host memory that the device can write.
struct RunList {
  std::int32_t* num_starts = nullptr;  ///< [num_ranks] also where there are more than are kept
  std::int32_t* first_row = nullptr;   ///< [num_ranks] row of the first token at the destination; 0 without one
  std::int32_t* chunk_rows = nullptr;  ///< [num_ranks, num_chunks] tokens of a chunk that go to the destination
  RunStart* starts = nullptr;          ///< [num_ranks, kMaxRunStarts] in no order
};

void carve_run_list(BufferCarver& carver, int num_ranks, RunList& list) noexcept;
/// The rows of the largest call for other ranks, and their scales.
void carve_packed(BufferCarver& carver, const DispatchLayout& layout, std::byte*& rows, std::byte*& scales) noexcept;

}  // namespace epistle::cuda
