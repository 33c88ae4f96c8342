// Flat sums of expert rows around an exchange: one row per (token, expert) comes back, so both ends need to know where
// the entries of every pair begin.
#include "dispatch/cuda/alltoall/exchange.hpp"
#include "dispatch/cuda/device/received_pairs.cuh"
#include "dispatch/cuda/device/row_sums.cuh"

namespace epistle::nccl {
namespace {

using cuda::kFullWarp;
using cuda::kSumThreads;
using cuda::kWarpSize;
using cuda::lane_id;
using cuda::rows_of_pair;
using cuda::SendPlace;
using cuda::sum_row;
using cuda::SumArgs;
using cuda::Term;
using cuda::warp_index;
using cuda::WarpIndex;

constexpr int kScanThreads = 1024;
constexpr int kScanWarps = kScanThreads / kWarpSize;
constexpr int kCountThreads = 256;

/// Calls `visit(packed pair, entry of the table)` for the rows of one token that come back from other ranks, in the
/// order in which they come.
template <typename Visit>
__device__ void for_each_entry(const EntryArgs& args, std::int64_t token, const Visit& visit) {
  const int num_sends = args.handle.sends_per_token;
  const int top_k = args.handle.top_k;
  const ExpertPartition partition = args.layout.partition();
  for (int nth = 0; nth < num_sends; ++nth) {
    const SendPlace send = args.handle.sends[token * num_sends + nth];
    if (send.dst_rank < 0 || send.dst_rank == args.group.rank) continue;
    for (std::int64_t entry = token * top_k; entry < (token + 1) * top_k; ++entry) {
      if (args.handle.dst_row[entry] < 0) continue;
      if (partition.rank_of(args.handle.expert_ids[entry]) == send.dst_rank) visit(send.stage, entry);
    }
  }
}

/// Counts the entries of every pair, on both ends. What this rank packs must be zero before.
__global__ void __launch_bounds__(kCountThreads) count_entries_kernel(const __grid_constant__ EntryArgs args) {
  const std::int64_t first = std::int64_t{blockIdx.x} * kCountThreads + threadIdx.x;
  const std::int64_t step = std::int64_t{gridDim.x} * kCountThreads;
  for (std::int64_t token = first; token < args.handle.num_tokens; token += step) {
    for_each_entry(args, token, [&](std::int32_t pair, std::int64_t) { ++args.tables.packed_begin[pair]; });
  }
  const cuda::HandleTotals& totals = *args.handle.totals;
  const std::int32_t own_begin = totals.pair_begin[args.group.rank];
  const std::int32_t own_end = totals.pair_begin[args.group.rank + 1];
  for (std::int64_t pair = first; pair < totals.num_pairs; pair += step) {
    std::int32_t count = 0;
    if (pair < own_begin || pair >= own_end) {
      const std::int32_t* rows = rows_of_pair(args.handle, args.layout, static_cast<int>(pair));
      for (int i = 0; i < args.handle.top_k; ++i) count += rows[i] >= 0 ? 1 : 0;
    }
    args.tables.received_begin[pair] = count;
  }
}

/// counts[0, n) become begins[0, n], by one block; every thread takes values that stand together.
__device__ void scan(std::int32_t* values, std::int64_t n) {
  __shared__ std::int32_t warp_sums[kScanWarps];
  const std::int64_t per_thread = (n + kScanThreads - 1) / kScanThreads;
  const std::int64_t begin = min(n, per_thread * threadIdx.x);
  const std::int64_t end = min(n, begin + per_thread);
  std::int32_t own = 0;
  for (std::int64_t i = begin; i < end; ++i) own += values[i];
  std::int32_t up_to_own = own;
  for (int step = 1; step < kWarpSize; step *= 2) {
    const std::int32_t other = __shfl_up_sync(kFullWarp, up_to_own, step);
    if (lane_id() >= step) up_to_own += other;
  }
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  if (lane_id() == kWarpSize - 1) warp_sums[warp] = up_to_own;
  __syncthreads();
  std::int32_t at = up_to_own - own;
  for (int before = 0; before < warp; ++before) at += warp_sums[before];
  for (std::int64_t i = begin; i < end; ++i) {
    const std::int32_t count = values[i];
    values[i] = at;
    at += count;
  }
  if (threadIdx.x == kScanThreads - 1) values[n] = at;
  __syncthreads();
}

/// One block for what this rank packs, one for what it receives.
__global__ void __launch_bounds__(kScanThreads) scan_entries_kernel(const __grid_constant__ EntryArgs args) {
  const cuda::HandleTotals& totals = *args.handle.totals;
  const bool packs = blockIdx.x == 0;
  std::int32_t* begins = packs ? args.tables.packed_begin : args.tables.received_begin;
  scan(begins, packs ? args.num_packed : totals.num_pairs);
  for (int peer = static_cast<int>(threadIdx.x); peer < args.group.num_ranks; peer += kScanThreads) {
    if (packs) {
      args.counts->returned[peer] = begins[args.packed_block[peer + 1]] - begins[args.packed_block[peer]];
    } else {
      args.counts->sent[peer] = begins[totals.pair_begin[peer + 1]] - begins[totals.pair_begin[peer]];
    }
  }
}

__global__ void __launch_bounds__(kCountThreads) place_entries_kernel(const __grid_constant__ EntryArgs args) {
  const int top_k = args.handle.top_k;
  for (std::int64_t token = std::int64_t{blockIdx.x} * kCountThreads + threadIdx.x; token < args.handle.num_tokens;
       token += std::int64_t{gridDim.x} * kCountThreads) {
    for (std::int64_t entry = token * top_k; entry < (token + 1) * top_k; ++entry) args.tables.stage[entry] = -1;
    std::int32_t pair_of_last = -1;
    std::int32_t next = 0;
    for_each_entry(args, token, [&](std::int32_t pair, std::int64_t entry) {
      if (pair != pair_of_last) next = args.tables.packed_begin[pair];
      pair_of_last = pair;
      args.tables.stage[entry] = next++;
    });
  }
}

__global__ void __launch_bounds__(kSumThreads, 1)
    pack_entries_kernel(const __grid_constant__ SumArgs args, const __grid_constant__ EntryTables tables) {
  const std::int64_t row_bytes = args.layout.params().combine_row_bytes;
  const cuda::HandleTotals& totals = *args.handle.totals;
  std::byte* packed = args.group.section(args.group.rank, BufferSection::kSendRows);
  const WarpIndex warp = warp_index();
  for (std::int32_t pair = warp.idx; pair < totals.num_pairs; pair += warp.count) {
    std::int32_t at = tables.received_begin[pair];
    if (at == tables.received_begin[pair + 1]) continue;
    const std::int32_t* rows = rows_of_pair(args.handle, args.layout, pair);
    for (int i = 0; i < args.handle.top_k; ++i) {
      if (rows[i] < 0) continue;
      cuda::copy_row_to(1U, packed + at * row_bytes, args.rows + rows[i] * row_bytes, row_bytes);
      ++at;
    }
  }
}

template <class Format>
__global__ void __launch_bounds__(kSumThreads, 1)
    sum_entries_kernel(const __grid_constant__ SumArgs args, const __grid_constant__ EntryTables tables) {
  const std::int64_t row_bytes = args.layout.params().combine_row_bytes;
  const int top_k = args.handle.top_k;
  const std::byte* stage = args.group.section(args.group.rank, BufferSection::kStageRows);
  const WarpIndex warp = warp_index();
  for (std::int64_t token = warp.idx; token < args.handle.num_tokens; token += warp.count) {
    const auto term_at = [&](int i) {
      const std::int64_t entry = token * top_k + i;
      const std::int32_t row = args.handle.dst_row[entry];
      if (row < 0) return Term{};
      const std::int32_t staged = tables.stage[entry];
      return Term{staged >= 0 ? stage + staged * row_bytes : args.rows + row * row_bytes, args.handle.weights[entry]};
    };
    sum_row<Format>(top_k, term_at, args.weighted, args.out + token * args.out_stride, row_bytes);
  }
}

}  // namespace

cudaError_t launch_find_entries(const EntryArgs& args, cudaStream_t stream) {
  const auto num_bytes = static_cast<std::size_t>(args.num_packed) * sizeof(std::int32_t);
  if (num_bytes > 0) {
    const cudaError_t error = cudaMemsetAsync(args.tables.packed_begin, 0, num_bytes, stream);
    if (error != cudaSuccess) return error;
  }
  count_entries_kernel<<<args.num_blocks, kCountThreads, 0, stream>>>(args);
  scan_entries_kernel<<<2, kScanThreads, 0, stream>>>(args);
  place_entries_kernel<<<args.num_blocks, kCountThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

cudaError_t launch_pack_entries(const SumArgs& args, const EntryTables& tables, cudaStream_t stream) {
  pack_entries_kernel<<<args.tuning.num_blocks, kSumThreads, 0, stream>>>(args, tables);
  return cudaGetLastError();
}

cudaError_t launch_sum_entries(const SumArgs& args, const EntryTables& tables, cudaStream_t stream) {
  cuda::with_format(args.dtype, [&](auto format) {
    sum_entries_kernel<decltype(format)><<<args.tuning.num_blocks, kSumThreads, 0, stream>>>(args, tables);
  });
  return cudaGetLastError();
}

cudaError_t load_entry_kernels() {
  cudaFuncAttributes attributes;
  cudaError_t error = cudaSuccess;
  for (const void* kernel :
       {reinterpret_cast<const void*>(&count_entries_kernel), reinterpret_cast<const void*>(&scan_entries_kernel),
        reinterpret_cast<const void*>(&place_entries_kernel), reinterpret_cast<const void*>(&pack_entries_kernel)}) {
    if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, kernel);
  }
  for (const DType dtype : {DType::kBf16, DType::kFp16, DType::kFp32}) {
    cuda::with_format(dtype, [&](auto format) {
      if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, &sum_entries_kernel<decltype(format)>);
    });
  }
  return error;
}

}  // namespace epistle::nccl
