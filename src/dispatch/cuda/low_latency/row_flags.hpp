// Memory of the flags between kernels (epistle/device/row_flags.hpp), and what dispatch needs to raise them.
#pragma once

#include <cstdint>
#include <type_traits>

#include "epistle/device/row_flags.hpp"

#include "dispatch/cuda/engine/context.hpp"
#include "dispatch/cuda/engine/device_buffers.hpp"
#include "dispatch/cuda/low_latency/flag_arrays.hpp"

namespace epistle::cuda {

/// For a dispatch; in device memory.
struct LineFlags {
  std::uint32_t* number = nullptr;         ///< of the dispatch
  device::RowArrival* arrivals = nullptr;  ///< [num_ranks, num_local_experts]
  std::uint32_t* parts = nullptr;          ///< likewise: parts of rows that have come so far; 0 between dispatches
};

struct ExtraDispatchArgs;
/// Whether a dispatch with such arguments may raise flags, or lay scales in columns.
template <class Args>
inline constexpr bool kHasExtras = std::is_same_v<Args, ExtraDispatchArgs>;

/// The flags of every buffer of a dispatcher.
class RowFlagMemory {
 public:
  RowFlagMemory() = default;
  explicit RowFlagMemory(const EngineContext& context);

  /// Without a number where there are none.
  [[nodiscard]] device::RowFlags of_buffer(std::int32_t buffer) const noexcept;
  [[nodiscard]] LineFlags for_dispatch(std::int32_t buffer) const noexcept;

 private:
  DeviceBuffer memory_;
  device::RowFlags shape_;  ///< sizes, without pointers but `failed`
  RowFlagArrays arrays_;
};

}  // namespace epistle::cuda
