// Sums of rows inside a domain, and over domains; gradients of the weights likewise. Compiled with -fmad=false.
#include "dispatch/cuda/device/formats.cuh"
#include "dispatch/cuda/device/row_sums.cuh"
#include "dispatch/cuda/hybrid/hybrid_launch.hpp"

namespace epistle::cuda {
namespace {

constexpr int kGradientThreads = 256;

template <class Format, bool kRoundsRanks>
__global__ void __launch_bounds__(kSumThreads, 1) sum_pairs_kernel(const __grid_constant__ SumPairsArgs args) {
  const WarpIndex warp = warp_index();
  for (std::int64_t pair = warp.idx; pair < args.count; pair += warp.count) {
    const RouteTerm* terms = args.terms + pair * args.top_k;
    const auto term_at = [&](int i) {
      const RouteTerm term = terms[i];
      if (term.rank < 0) return Term{};
      return Term{args.from.rows_of(term.rank) + term.row * args.row_bytes, term.weight,
                  (term.flags & RouteTerm::kLast) != 0};
    };
    sum_row<Format, kRoundsRanks>(args.top_k, term_at, args.weighted, args.out + pair * args.row_bytes, args.row_bytes);
  }
}

template <class Format>
__global__ void __launch_bounds__(kSumThreads, 1) sum_domains_kernel(const __grid_constant__ SumDomainsArgs args) {
  const WarpIndex warp = warp_index();
  for (std::int64_t token = warp.idx; token < args.num_tokens; token += warp.count) {
    const DomainRow* places = args.sums.token_rows + token * args.sums.slots;
    const auto term_at = [&](int i) {
      const DomainRow place = places[i];
      return place.domain < 0 ? Term{} : Term{args.sums.at(place, args.row_bytes), 1.0F};
    };
    sum_row<Format>(args.sums.slots, term_at, false, args.out + token * args.out_stride, args.row_bytes);
  }
}

/// This thread among those of a grid.
struct ThreadIndex {
  std::int64_t idx;
  std::int64_t count;
};
__device__ ThreadIndex thread_index() {
  return {std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x, std::int64_t{gridDim.x} * blockDim.x};
}

__global__ void __launch_bounds__(kGradientThreads)
    gather_gradients_kernel(const __grid_constant__ GatherGradientsArgs args) {
  const ThreadIndex thread = thread_index();
  for (std::int64_t i = thread.idx; i < args.count * args.top_k; i += thread.count) {
    const RoutePlace place = args.places[i];
    float gradient = 0.0F;
    if (place.rank >= 0) {
      const auto* gradients =
          reinterpret_cast<const float*>(args.group.section(place.rank, BufferSection::kGradWeights));
      const std::int64_t at =
          args.token_major ? std::int64_t{place.row} * args.top_k + i % args.top_k : std::int64_t{place.row};
      gradient = __ldcg(gradients + at);
    }
    args.out[i] = gradient;
  }
}

__global__ void __launch_bounds__(kGradientThreads)
    place_gradients_kernel(const __grid_constant__ PlaceGradientsArgs args) {
  const ThreadIndex thread = thread_index();
  const int top_k = args.handle.top_k;
  for (std::int64_t i = thread.idx; i < args.handle.num_tokens * top_k; i += thread.count) {
    float gradient = 0.0F;
    if (args.handle.dst_row[i] >= 0) {
      const int domain = args.partition.rank_of(args.handle.expert_ids[i]) / args.domain_size;
      const DomainRow* places = args.gradients.token_rows + i / top_k * args.gradients.slots;
      for (int slot = 0; slot < args.gradients.slots; ++slot) {
        if (places[slot].domain == domain) gradient = __ldcg(args.gradients.at(places[slot], top_k) + i % top_k);
      }
    }
    args.out[i] = gradient;
  }
}

template <class Format>
cudaError_t start_sum_pairs(const SumPairsArgs& args, cudaStream_t stream) {
  if (args.rounds_ranks) {
    sum_pairs_kernel<Format, true><<<args.num_blocks, kSumThreads, 0, stream>>>(args);
  } else {
    sum_pairs_kernel<Format, false><<<args.num_blocks, kSumThreads, 0, stream>>>(args);
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_sum_pairs(const SumPairsArgs& args, cudaStream_t stream) {
  return with_format(args.dtype, [&](auto format) { return start_sum_pairs<decltype(format)>(args, stream); });
}

cudaError_t launch_sum_domains(const SumDomainsArgs& args, cudaStream_t stream) {
  with_format(args.dtype, [&](auto format) {
    sum_domains_kernel<decltype(format)><<<args.num_blocks, kSumThreads, 0, stream>>>(args);
  });
  return cudaGetLastError();
}

cudaError_t launch_gather_gradients(const GatherGradientsArgs& args, cudaStream_t stream) {
  gather_gradients_kernel<<<args.num_blocks, kGradientThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

cudaError_t launch_place_gradients(const PlaceGradientsArgs& args, cudaStream_t stream) {
  place_gradients_kernel<<<args.num_blocks, kGradientThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

cudaError_t load_hybrid_sums() {
  cudaError_t error = cudaSuccess;
  cudaFuncAttributes attributes;
  const auto load = [&](const void* kernel) {
    if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, kernel);
  };
  load(reinterpret_cast<const void*>(&gather_gradients_kernel));
  load(reinterpret_cast<const void*>(&place_gradients_kernel));
  for (const DType dtype : {DType::kBf16, DType::kFp16, DType::kFp32}) {
    with_format(dtype, [&](auto format) {
      using Format = decltype(format);
      load(reinterpret_cast<const void*>(&sum_pairs_kernel<Format, false>));
      load(reinterpret_cast<const void*>(&sum_pairs_kernel<Format, true>));
      load(reinterpret_cast<const void*>(&sum_domains_kernel<Format>));
    });
  }
  return error;
}

}  // namespace epistle::cuda
