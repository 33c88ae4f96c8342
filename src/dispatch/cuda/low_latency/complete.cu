// What a dispatch by lines leaves open: the rows of this rank's tokens at other ranks. Calls that read or write there
// need them; a decode step makes none, so they are found when such a call comes, from the counts that the handle keeps.
#include "dispatch/cuda/device/start_kernel.cuh"
#include "dispatch/cuda/low_latency/kernels.hpp"
#include "dispatch/cuda/low_latency/line_tables.cuh"

namespace epistle::cuda {
namespace {

struct CompleteTables {
  RoutingBits routing;
  Tables all;           ///< of these: total and group
  std::int32_t* begin;  ///< [ranks + experts] first row of this rank there: as a pair, or of an expert
};

__host__ __device__ std::int64_t carve(std::byte* memory, const LineShape& shape, CompleteTables& t) {
  LineTables line;
  const std::int64_t used = carve(memory, shape, line);
  t.routing = line.routing;
  t.all = line.all;
  t.begin = reinterpret_cast<std::int32_t*>(memory + used);
  return used + round16((std::int64_t{shape.ranks} + shape.experts) * static_cast<std::int64_t>(sizeof(std::int32_t)));
}

/// Where this rank's rows begin at every rank and expert.
__device__ void find_begins(const LineCompleteArgs& args, CompleteTables& t) {
  const int ranks = args.group.num_ranks;
  const int experts = args.group.control.num_experts;
  const std::int32_t* counts = args.handle.counts;
  const int columns = ranks + experts;
  const auto sum = [&](int column, int end) {
    std::int32_t total = 0;
    for (int s = 0; s < end; ++s) total += counts[s * columns + column];
    return total;
  };
  for (int e = static_cast<int>(threadIdx.x); e < experts; e += kLineThreads) {
    t.all.total[e] = sum(expert_column(ranks, e), ranks);
  }
  __syncthreads();
  const bool token_major = args.layout.token_major();
  for (int d = static_cast<int>(threadIdx.x) / kWarpSize; d < ranks && !token_major; d += kLineWarps) {
    static_cast<void>(place_groups(args.layout, t.all, d));
  }
  __syncthreads();
  for (int c = static_cast<int>(threadIdx.x); c < columns; c += kLineThreads) {
    t.begin[c] = sum(c, args.group.rank) + (c >= ranks && !token_major ? t.all.group[c - ranks] : 0);
  }
  __syncthreads();
}

__global__ void __launch_bounds__(kLineThreads, 1) complete_kernel(const __grid_constant__ LineCompleteArgs args) {
  extern __shared__ __align__(16) std::byte shared[];
  wait_for_start(args.group);
  const HandleArrays& handle = args.handle;
  if (has_failed(args.group) || handle.totals->is_void != 0) return;
  const ExpertPartition partition = args.layout.partition();
  const int top_k = handle.top_k;
  CompleteTables t;
  carve(shared,
        {args.group.num_ranks, partition.num_experts, top_k, partition.max_local_experts(),
         args.group.control.max_tokens},
        t);
  t.routing.clear(whole_block());
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < handle.num_tokens * top_k; i += kLineThreads) {
    const std::int32_t expert = handle.expert_ids[i];
    t.routing.entries[i] = expert;
    if (expert < 0) continue;
    const int rank = partition.rank_of(expert);
    const int token = i / top_k;
    t.routing.ranks[i] = static_cast<std::uint8_t>(rank);
    const std::uint32_t bit = 1U << (token & 31);
    atomicOr(&t.routing.bits[expert_column(args.group.num_ranks, expert) * t.routing.stride + token / 32], bit);
    atomicOr(&t.routing.bits[rank * t.routing.stride + token / 32], bit);
  }
  __syncthreads();
  find_begins(args, t);
  const bool token_major = args.layout.token_major();
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  for (int token = warp; token < handle.num_tokens; token += kLineWarps) {
    const TokenRanks ranks(t.routing, token, top_k, args.layout.params().order);
    std::int32_t row = -1;
    if (ranks.expert >= 0) {
      const int column = token_major ? ranks.rank : expert_column(args.group.num_ranks, ranks.expert);
      row = t.begin[column] + t.routing.before(column, token);
    }
    if (lane_id() < top_k) handle.dst_row[std::int64_t{token} * top_k + lane_id()] = row;
    // The first of a rank's rows, in top-k order.
    const unsigned same = __match_any_sync(kFullWarp, ranks.rank);
    const std::int32_t first_row = __shfl_sync(kFullWarp, row, __ffs(static_cast<int>(same)) - 1);
    if (!ranks.is_leader()) continue;
    SendPlace& send = handle.sends[std::int64_t{token} * handle.sends_per_token + ranks.slot];
    send.row = first_row;
    send.pair = t.begin[ranks.rank] + t.routing.before(ranks.rank, token);
  }
}

}  // namespace

std::int64_t line_complete_shared_bytes(const DispatchLayout& layout) noexcept {
  const LayoutParams& params = layout.params();
  CompleteTables t;
  return carve(
      nullptr,
      {params.num_ranks, params.num_experts, params.top_k, layout.partition().max_local_experts(), params.max_tokens},
      t);
}

const void* line_complete_kernel_address() noexcept { return reinterpret_cast<const void*>(&complete_kernel); }

cudaError_t launch_line_complete(const LineCompleteArgs& args, cudaStream_t stream) {
  return start_kernel(complete_kernel, {1, kLineThreads, line_complete_shared_bytes(args.layout)},
                      args.group.early_start, args, stream);
}

}  // namespace epistle::cuda
