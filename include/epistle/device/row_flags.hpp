// Flags between the kernels of a dispatcher and kernels of yours, in device memory: which received rows are there, and
// which expert outputs are done. A grouped GEMM can begin with the experts whose rows have come, and combine sums rows
// as the GEMM has written them, each while the kernel before it still runs (docs/low_latency.md, "Seams").
//
// RowFlags comes from Received::row_flags() and is passed to kernels by value. The functions are for kernels; this
// header needs nothing else of the library. Flags hold the number of their dispatch, so nobody clears them, and a graph
// can be replayed for ever.
//
// A kernel that waits must be ordered behind the send half of its dispatch (dispatch_send), which is what makes
// current_number() the number of that dispatch, and must leave SMs to the receive half, which raises the flags: launch
// that first, and keep the grid of a kernel that waits below the SMs of the GPU less `num_sms` of the call.
#pragma once

#include <cstdint>

namespace epistle::device {

/// The rows of one source rank for one local expert; written by the dispatcher.
struct alignas(16) RowArrival {
  std::uint32_t number;  ///< of the dispatch whose rows these are; written last
  std::int32_t begin;    ///< first of them in Received::rows()
  std::int32_t count;    ///< may be 0
  std::int32_t padding;
};

/// Flags of one Received. All in memory of its GPU.
struct RowFlags {
  std::int32_t num_ranks = 0;
  std::int32_t num_local_experts = 0;
  std::int64_t num_rows = 0;
  const std::uint32_t* number = nullptr;  ///< of the dispatch under way
  const RowArrival* arrivals = nullptr;   ///< [num_ranks (source), num_local_experts]
  std::uint32_t* done = nullptr;          ///< [num_rows] the number of the dispatch: its expert output is written
  const std::uint32_t* failed = nullptr;  ///< not 0: the dispatcher has given up, and what has not come will not
};

/// How a wait has ended.
enum class RowWait : std::int32_t {
  kThere,    ///< the rows can be read
  kTimeout,  ///< the deadline has passed
  kFailed,   ///< the dispatcher has given up: Dispatcher::wait() on the host says why
};

#ifdef __CUDACC__

namespace detail {

__device__ inline std::uint32_t load_acquire(const std::uint32_t* flag) {
  std::uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}
__device__ inline std::uint32_t load_relaxed(const std::uint32_t* flag) {
  std::uint32_t value;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}
__device__ inline void store_relaxed(std::uint32_t* flag, std::uint32_t value) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}
__device__ inline void fence() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

}  // namespace detail

/// Nanoseconds of the GPU's clock.
__device__ inline std::uint64_t row_clock_ns() {
  std::uint64_t time_ns;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(time_ns));
  return time_ns;
}

/// The number of the dispatch under way; ask once in a kernel.
__device__ inline std::uint32_t current_number(const RowFlags& flags) { return detail::load_relaxed(flags.number); }

/// Whether all rows of `source` for the expert are there, which the calling thread may then read, and their
/// description too; does not wait. Other threads may read them behind a barrier with this one (__syncwarp,
/// __syncthreads), and bulk copies (TMA) behind a proxy fence (fence.proxy.async) of the thread that starts them.
__device__ inline bool try_rows(const RowFlags& flags, std::uint32_t number, int source, int local_expert,
                                RowArrival& rows) {
  const RowArrival* arrival = flags.arrivals + source * flags.num_local_experts + local_expert;
  // Pairs with the release of the flag by the kernel that took the rows to their places.
  if (detail::load_acquire(&arrival->number) != number) return false;
  rows = {number, *static_cast<const volatile std::int32_t*>(&arrival->begin),
          *static_cast<const volatile std::int32_t*>(&arrival->count), 0};
  return true;
}

/// The same, and waits for them until row_clock_ns() passes `deadline_ns`.
__device__ inline RowWait wait_rows(const RowFlags& flags, std::uint32_t number, int source, int local_expert,
                                    std::uint64_t deadline_ns, RowArrival& rows) {
  while (!try_rows(flags, number, source, local_expert, rows)) {
    if (detail::load_relaxed(flags.failed) != 0) return RowWait::kFailed;
    if (row_clock_ns() > deadline_ns) return RowWait::kTimeout;
  }
  return RowWait::kThere;
}

/// Says that the expert outputs of rows [begin, begin + count) are written: a combine with
/// CombineRequest::as_rows_finish takes them. By all threads of a team, of which this is number `thread` of
/// `num_threads`, after a barrier of those that wrote. Outputs that another proxy has written (bulk stores) must be
/// complete.
__device__ inline void mark_rows_done(const RowFlags& flags, std::uint32_t number, std::int64_t begin,
                                      std::int64_t count, int thread, int num_threads) {
  detail::fence();  // pairs with the acquire of combine
  for (std::int64_t i = thread; i < count; i += num_threads) detail::store_relaxed(flags.done + begin + i, number);
}

/// For outputs whose columns several blocks write: true in the block that is the last of `parts` to have come to
/// `counter`, a word of yours that is 0 at first and again afterwards. That block marks the rows. By one thread of
/// each, after a barrier of those that wrote.
__device__ inline bool is_last_part(std::uint32_t* counter, std::uint32_t parts) {
  detail::fence();
  const bool is_last = atomicInc(counter, parts - 1) == parts - 1;
  detail::fence();  // what the others wrote comes before what this one says
  return is_last;
}

#endif  // __CUDACC__

}  // namespace epistle::device
