// Combine around an exchange that brings back one row per (token, rank).
#include "dispatch/cuda/alltoall/exchange.hpp"
#include "dispatch/cuda/device/received_pairs.cuh"
#include "dispatch/cuda/device/row_sums.cuh"

namespace epistle::nccl {
namespace {

using cuda::kSumThreads;
using cuda::rows_of_pair;
using cuda::SendPlace;
using cuda::sum_row;
using cuda::SumArgs;
using cuda::Term;
using cuda::warp_index;
using cuda::WarpIndex;

template <class Format>
__global__ void __launch_bounds__(kSumThreads, 1) sum_pairs_kernel(const __grid_constant__ SumArgs args) {
  const std::int64_t row_bytes = args.layout.params().combine_row_bytes;
  std::byte* sums = args.group.section(args.group.rank, BufferSection::kSendRows);
  const WarpIndex warp = warp_index();
  // The own pairs too: their sums are added where they lie.
  for (std::int32_t pair = warp.idx; pair < args.handle.totals->num_pairs; pair += warp.count) {
    const std::int32_t* rows = rows_of_pair(args.handle, args.layout, pair);
    const auto* weights = reinterpret_cast<const float*>(rows + args.handle.top_k);
    const auto term_at = [&](int i) {
      return rows[i] < 0 ? Term{} : Term{args.rows + rows[i] * row_bytes, weights[i]};
    };
    sum_row<Format>(args.handle.top_k, term_at, args.weighted, sums + pair * row_bytes, row_bytes);
  }
}

template <class Format>
__global__ void __launch_bounds__(kSumThreads, 1) sum_tokens_kernel(const __grid_constant__ SumArgs args) {
  const std::int64_t row_bytes = args.layout.params().combine_row_bytes;
  const int num_sends = args.handle.sends_per_token;
  const bool token_major = args.layout.token_major();
  const std::byte* stage = args.group.section(args.group.rank, BufferSection::kStageRows);
  const std::byte* own_sums = args.group.section(args.group.rank, BufferSection::kSendRows);
  const WarpIndex warp = warp_index();
  for (std::int64_t token = warp.idx; token < args.handle.num_tokens; token += warp.count) {
    const auto term_at = [&](int i) {
      const SendPlace send = args.handle.sends[token * num_sends + i];
      if (send.dst_rank < 0) return Term{};
      const float weight = args.handle.send_weights[token * num_sends + i];
      if (send.dst_rank != args.group.rank) return Term{stage + send.stage * row_bytes, weight};
      if (token_major) return Term{args.rows + send.row * row_bytes, weight};
      return Term{own_sums + send.pair * row_bytes, weight};
    };
    // Sums of expert rows have the weights in them already.
    sum_row<Format>(num_sends, term_at, args.weighted && token_major, args.out + token * args.out_stride, row_bytes);
  }
}

}  // namespace

cudaError_t launch_sum_pairs(const SumArgs& args, cudaStream_t stream) {
  cuda::with_format(args.dtype, [&](auto format) {
    sum_pairs_kernel<decltype(format)><<<args.tuning.num_blocks, kSumThreads, 0, stream>>>(args);
  });
  return cudaGetLastError();
}

cudaError_t launch_sum_tokens(const SumArgs& args, cudaStream_t stream) {
  cuda::with_format(args.dtype, [&](auto format) {
    sum_tokens_kernel<decltype(format)><<<args.tuning.num_blocks, kSumThreads, 0, stream>>>(args);
  });
  return cudaGetLastError();
}

cudaError_t load_sum_kernels() {
  cudaError_t error = cudaSuccess;
  for (const DType dtype : {DType::kBf16, DType::kFp16, DType::kFp32}) {
    cuda::with_format(dtype, [&](auto format) {
      cudaFuncAttributes attributes;
      using Format = decltype(format);
      if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, &sum_pairs_kernel<Format>);
      if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, &sum_tokens_kernel<Format>);
    });
  }
  return error;
}

}  // namespace epistle::nccl
