// The kernels of `hybrid`. They read and write this rank's memory, what links bring and take, and memory of ranks of
// the own domain; none waits for another rank.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

#include "dispatch/cuda/engine/launch.hpp"
#include "dispatch/link/route_tables.hpp"

namespace epistle::cuda {

/// Rows of tokens that go to other domains, one behind the other.
struct PackRowsArgs {
  const std::int32_t* tokens = nullptr;  ///< [count]
  std::int64_t count = 0;
  const std::byte* rows = nullptr;
  const std::byte* scales = nullptr;
  TokenStrides strides;
  std::int64_t row_bytes = 0;
  std::int64_t scale_bytes = 0;
  std::byte* out_rows = nullptr;
  std::byte* out_scales = nullptr;
  int num_blocks = 1;
};

/// What the ranks of a domain have of a call: which copy of its buffers each uses.
struct DomainBuffers {
  DeviceGroup group;
  BufferSection section = BufferSection::kReceiveRows;
  std::int8_t copy[kMaxRanks] = {};

  [[nodiscard]] EPISTLE_HOST_DEVICE std::byte* rows_of(int rank) const {
    return group.section(rank, section, copy[rank]);
  }
  [[nodiscard]] EPISTLE_HOST_DEVICE std::byte* scales_of(int rank) const {
    return group.section(rank, BufferSection::kReceiveScales, copy[rank]);
  }
};

/// Rows on their way to the ranks of this domain: one for each.
struct ForwardRowsArgs {
  DomainBuffers to;
  const RouteTerm* terms = nullptr;  ///< [count, top_k]
  std::int32_t top_k = 0;
  std::int64_t count = 0;
  const std::int32_t* tokens = nullptr;  ///< [count] rows of these; null: they lie one behind the other
  const std::byte* rows = nullptr;
  const std::byte* scales = nullptr;
  TokenStrides strides;  ///< also of rows that lie one behind the other
  std::int64_t row_bytes = 0;
  std::int64_t scale_bytes = 0;
  int num_blocks = 1;
};

/// Sums of pairs over the ranks of this domain, one behind the other.
struct SumPairsArgs {
  DomainBuffers from;
  const RouteTerm* terms = nullptr;  ///< [count, top_k]
  std::int32_t top_k = 0;
  std::int64_t count = 0;
  DType dtype = DType::kBf16;
  bool weighted = false;
  bool rounds_ranks = false;  ///< the sum of every rank: rows of experts
  std::int64_t row_bytes = 0;
  std::byte* out = nullptr;
  int num_blocks = 1;
};

/// Where what has come back for this rank's tokens lies.
template <typename Value>
struct Returned {
  const DomainRow* token_rows = nullptr;  ///< [num_tokens, slots]
  std::int32_t slots = 0;
  std::int32_t own_domain = 0;
  const Value* own = nullptr;     ///< of the own domain
  const Value* landed = nullptr;  ///< of the others

  [[nodiscard]] EPISTLE_HOST_DEVICE const Value* at(const DomainRow& place, std::int64_t values_per_row) const {
    return (place.domain == own_domain ? own : landed) + place.row * values_per_row;
  }
};

struct SumDomainsArgs {
  Returned<std::byte> sums;
  std::int64_t num_tokens = 0;
  DType dtype = DType::kBf16;
  std::int64_t row_bytes = 0;
  std::byte* out = nullptr;
  std::int64_t out_stride = 0;
  int num_blocks = 1;
};

/// Gradients of the weights of pairs, [count, top_k], from where the ranks of this domain have them.
struct GatherGradientsArgs {
  DeviceGroup group;
  const RoutePlace* places = nullptr;  ///< [count, top_k]
  std::int32_t top_k = 0;
  std::int64_t count = 0;
  bool token_major = false;
  float* out = nullptr;
  int num_blocks = 1;
};

/// The same to where the caller wants them.
struct PlaceGradientsArgs {
  Returned<float> gradients;
  HandleArrays handle;
  ExpertPartition partition;
  std::int32_t domain_size = 1;
  float* out = nullptr;  ///< [num_tokens, top_k]
  int num_blocks = 1;
};

[[nodiscard]] cudaError_t launch_pack_rows(const PackRowsArgs& args, cudaStream_t stream);
[[nodiscard]] cudaError_t launch_forward_rows(const ForwardRowsArgs& args, cudaStream_t stream);
/// Duplicates received rows for further experts of their tokens, and zeroes padding where `args` asks for it.
[[nodiscard]] cudaError_t launch_complete_rows(const MoveArgs& args, cudaStream_t stream);
[[nodiscard]] cudaError_t launch_sum_pairs(const SumPairsArgs& args, cudaStream_t stream);
[[nodiscard]] cudaError_t launch_sum_domains(const SumDomainsArgs& args, cudaStream_t stream);
[[nodiscard]] cudaError_t launch_gather_gradients(const GatherGradientsArgs& args, cudaStream_t stream);
[[nodiscard]] cudaError_t launch_place_gradients(const PlaceGradientsArgs& args, cudaStream_t stream);

/// Loads every kernel, so that no launch has to later, while kernels of other ranks wait.
[[nodiscard]] cudaError_t load_hybrid_kernels();
[[nodiscard]] cudaError_t load_hybrid_sums();

}  // namespace epistle::cuda
