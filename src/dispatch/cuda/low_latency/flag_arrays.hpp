// How large the memory of flags of rows is, and what lies where in it.
#pragma once

#include <cstdint>

#include "epistle/device/row_flags.hpp"

#include "dispatch/cuda/engine/buffer_carver.hpp"
#include "layout/dispatch_layout.hpp"

namespace epistle::cuda {

/// The memory of the flags of all buffers.
struct RowFlagArrays {
  device::RowArrival* arrivals = nullptr;  ///< [buffers, num_ranks, num_local_experts]
  std::uint32_t* parts = nullptr;          ///< [num_ranks, num_local_experts]
  std::uint32_t* done = nullptr;           ///< [buffers, num_rows]
  std::uint32_t* numbers = nullptr;        ///< [buffers]
};
/// Flags of one buffer that tell of the rows of a source and an expert.
[[nodiscard]] constexpr std::int64_t num_flags(const device::RowFlags& shape) noexcept {
  return std::int64_t{shape.num_ranks} * shape.num_local_experts;
}
/// How many flags a rank with so many experts has, without pointers.
[[nodiscard]] device::RowFlags shape_of_flags(const DispatchLayout& layout, std::int32_t num_local_experts) noexcept;
void carve_row_flags(BufferCarver& carver, const device::RowFlags& shape, std::int32_t num_buffers,
                     RowFlagArrays& arrays) noexcept;

}  // namespace epistle::cuda
