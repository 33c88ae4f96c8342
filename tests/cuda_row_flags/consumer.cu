#include "cuda_row_flags/consumer.hpp"

namespace epistle::testing {
namespace {

constexpr int kThreads = 256;

__device__ std::uint16_t output_of(std::int64_t row, std::int64_t column) {
  // A bf16 between 1 and 2.
  return static_cast<std::uint16_t>(0x3f80 + (row * 37 + column * 11) % 127);
}

__device__ void write_outputs(const ConsumerArgs& args, std::int64_t row, std::int64_t begin, std::int64_t end) {
  auto* out = reinterpret_cast<std::uint16_t*>(args.outputs) + row * args.output_hidden;
  for (std::int64_t c = begin + threadIdx.x; c < end; c += kThreads) out[c] = output_of(row, c);
}

/// Column part `part` of the rows of a source for an expert; all of it where there is one part.
__device__ void take_rows(const ConsumerArgs& args, const device::RowArrival& rows, std::int64_t part) {
  const std::int64_t per_part = args.columns_per_part > 0 ? args.columns_per_part : args.output_hidden;
  for (std::int64_t row = rows.begin; row < rows.begin + rows.count; ++row) {
    const std::int64_t end = (part + 1) * per_part;
    write_outputs(args, row, part * per_part, end < args.output_hidden ? end : args.output_hidden);
    if (part > 0) continue;
    for (std::int64_t b = threadIdx.x; b < args.row_bytes; b += kThreads) {
      args.seen_rows[row * args.row_bytes + b] = args.rows[row * args.row_bytes + b];
    }
    for (std::int64_t b = threadIdx.x; args.scales != nullptr && b < args.scale_bytes; b += kThreads) {
      args.seen_scales[row * args.scale_bytes + b] = args.scales[row * args.scale_bytes + b];
    }
    if (threadIdx.x == 0) args.seen_tokens[row] = args.src_token[row];
  }
}

__global__ void __launch_bounds__(kThreads) consumer_kernel(const ConsumerArgs args) {
  __shared__ device::RowArrival rows;
  __shared__ device::RowWait end;
  __shared__ bool marks;
  const device::RowFlags& flags = args.flags;
  const std::uint32_t number = device::current_number(flags);
  const std::uint64_t deadline_ns = device::row_clock_ns() + args.timeout_ns;
  const int parts = args.columns_per_part > 0
                        ? static_cast<int>((args.output_hidden + args.columns_per_part - 1) / args.columns_per_part)
                        : 1;
  const int count = flags.num_ranks * flags.num_local_experts * parts;
  for (int unit = static_cast<int>(blockIdx.x); unit < count; unit += static_cast<int>(gridDim.x)) {
    const int idx = unit / parts;
    const int source = idx / flags.num_local_experts;
    if (threadIdx.x == 0) {
      end = device::wait_rows(flags, number, source, idx % flags.num_local_experts, deadline_ns, rows);
      atomicAdd(&args.findings->ends[static_cast<int>(end)], 1U);
    }
    __syncthreads();
    if (end == device::RowWait::kThere) {
      if (threadIdx.x == 0 && unit % parts == 0) args.seen[idx] = rows;
      take_rows(args, rows, unit % parts);
      __syncthreads();
      if (threadIdx.x == 0) {
        marks = args.marks && (parts == 1 || device::is_last_part(args.counters + idx, static_cast<unsigned>(parts)));
      }
      __syncthreads();
      if (marks) device::mark_rows_done(flags, number, rows.begin, rows.count, static_cast<int>(threadIdx.x), kThreads);
    }
    __syncthreads();
  }
}

__global__ void __launch_bounds__(kThreads) outputs_kernel(const ConsumerArgs args, std::int64_t num_rows) {
  for (std::int64_t row = blockIdx.x; row < num_rows; row += gridDim.x) {
    if (args.src_token[row] >= 0) write_outputs(args, row, 0, args.output_hidden);
  }
}

}  // namespace

cudaError_t load_consumer_kernels() {
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, consumer_kernel);
  return error == cudaSuccess ? cudaFuncGetAttributes(&attributes, outputs_kernel) : error;
}

cudaError_t launch_consumer(const ConsumerArgs& args, int blocks, cudaStream_t stream) {
  consumer_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

cudaError_t launch_outputs(const ConsumerArgs& args, cudaStream_t stream) {
  constexpr unsigned kBlocks = 16;
  outputs_kernel<<<kBlocks, kThreads, 0, stream>>>(args, args.flags.num_rows);
  return cudaGetLastError();
}

}  // namespace epistle::testing
