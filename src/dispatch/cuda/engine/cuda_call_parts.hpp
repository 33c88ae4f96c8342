// What the calls of CudaEngine tell each other.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dispatch/cuda/engine/cuda_engine.hpp"

namespace epistle::cuda {

/// What makes sums differ from one another.
struct CudaEngine::SumCall {
  DeviceCall call = DeviceCall::kCombine;
  const std::byte* rows = nullptr;
  Rows out = {};
  const float* weights = nullptr;  ///< null: those of the routing
  std::uint32_t phases = kBothPhases;
  bool weighted = false;
  bool as_rows_finish = false;  ///< CombineRequest::as_rows_finish
};

/// Tokens on their way, and how the dispatch stands to its prepare.
struct CudaEngine::Move {
  ConstRows tokens = {};
  ScalesView scales = {};
  std::uint32_t phases = kBothPhases;
  Follows follows = Follows::kNothing;
};

[[nodiscard]] inline TokenStrides strides_of(const ConstRows& rows, const ScalesView& scales) {
  const ScaleStrides strides = strides_in_bytes(scales);
  return {.row = rows.stride_bytes(),
          .scale_row = strides.row,
          .scale_column = strides.column,
          .scale_element_bytes = strides.element_bytes};
}

}  // namespace epistle::cuda
