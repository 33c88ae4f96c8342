// Bulk copies through shared memory (sm_90 and later): one lane of a warp keeps several parts of rows on their way, and
// no register holds a byte of them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dispatch/cuda/device/rows.cuh"

namespace epistle::cuda {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define EPISTLE_BULK_COPIES 1
#else
#define EPISTLE_BULK_COPIES 0
#endif

/// Bytes that travel as one part, parts that a warp has room for, and loads under way before the first is stored.
inline constexpr int kPartBytes = 4096;
inline constexpr int kRingParts = 3;
inline constexpr int kPartsAhead = 2;
inline constexpr int kBulkWarps = 16;
inline constexpr int kBulkThreads = kBulkWarps * kWarpSize;
/// Places of one row that the pipe takes; a row that goes to more is copied with 16-byte stores.
inline constexpr int kMaxFan = kWarpSize;

/// Shared memory of one warp.
struct alignas(128) BulkRing {
  std::byte parts[kRingParts][kPartBytes];
  std::byte* targets[kRingParts][kMaxFan];
  std::uint64_t loaded[kRingParts];  // mbarriers
  std::uint32_t sizes[kRingParts];
  std::int32_t fans[kRingParts];
};

#if EPISTLE_BULK_COPIES

__device__ inline std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ inline void init_barrier(std::uint64_t* barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
}

/// Makes initialised barriers known to the copies. (Rows that a flag has announced need no such fence: another GPU
/// wrote them, so they are where bulk copies look.)
__device__ inline void fence_async() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

/// So many bytes will come, in parts.
__device__ inline void expect_parts(std::uint32_t num_bytes, std::uint64_t* barrier) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(num_bytes)
               : "memory");
}
/// One of those, to an address in shared memory.
__device__ inline void load_expected_part(std::uint32_t place, const std::byte* from, std::uint32_t num_bytes,
                                          std::uint64_t* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(place),
               "l"(from), "r"(num_bytes), "r"(shared_address(barrier))
               : "memory");
}
__device__ inline void load_part(std::byte* place, const std::byte* from, std::uint32_t num_bytes,
                                 std::uint64_t* barrier) {
  expect_parts(num_bytes, barrier);
  load_expected_part(shared_address(place), from, num_bytes, barrier);
}

__device__ inline bool is_loaded(std::uint64_t* barrier, std::uint32_t parity) {
  std::uint32_t done = 0;
  asm volatile(
      "{\n.reg .pred p;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n}\n"
      : "=r"(done)
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
  return done != 0;
}

__device__ inline void store_part(std::byte* to, const std::byte* from, std::uint32_t num_bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(shared_address(from)),
               "r"(num_bytes)
               : "memory");
}
__device__ inline void commit_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
/// All but the last kPending groups of stores have read their parts of the ring.
template <int kPending>
__device__ inline void wait_ring_free() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}
/// All but the last kPending groups of stores are where they belong.
template <int kPending>
__device__ inline void wait_stored() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kPending) : "memory");
}

/// A warp's parts of rows, first in, first out. All lanes make all calls; lane 0 does the work.
class BulkPipe {
 public:
  __device__ explicit BulkPipe(BulkRing& ring) : ring_(ring) {
    if (lane_id() == 0) {
      for (int entry = 0; entry < kRingParts; ++entry) init_barrier(&ring.loaded[entry]);
      fence_async();
    }
    __syncwarp();
  }

  /// Puts a row on its way to the places of the lanes in `mask` (at most kMaxFan), each lane's own in `target`.
  __device__ void copy(unsigned mask, std::byte* target, const std::byte* from, std::int64_t num_bytes) {
    const int idx = __popc(mask & ((1U << lane_id()) - 1));
    const bool mine = (mask >> lane_id() & 1U) != 0;
    const int fan = __popc(mask);
    for (std::int64_t at = 0; at < num_bytes; at += kPartBytes) {
      const auto size = static_cast<std::uint32_t>(min(num_bytes - at, std::int64_t{kPartBytes}));
      const int entry = static_cast<int>(num_loaded_ % kRingParts);
      if (mine) ring_.targets[entry][idx] = target + at;
      __syncwarp();
      if (lane_id() == 0) {
        // What was there before was stored kRingParts parts ago, and kPartsAhead of those are only loaded yet.
        wait_ring_free<kRingParts - kPartsAhead - 1>();
        load_part(ring_.parts[entry], from + at, size, &ring_.loaded[entry]);
        ring_.sizes[entry] = size;
        ring_.fans[entry] = fan;
      }
      ++num_loaded_;
      if (num_loaded_ - num_stored_ > kPartsAhead) store_next();
    }
  }

  /// Sends everything on its way.
  __device__ void flush() {
    while (num_stored_ != num_loaded_) store_next();
  }

  /// Parts given to copy() and parts of which the stores have been started.
  [[nodiscard]] __device__ std::uint32_t num_loaded() const { return num_loaded_; }
  [[nodiscard]] __device__ std::uint32_t num_stored() const { return num_stored_; }

 private:
  __device__ void store_next() {
    const std::uint32_t part = num_stored_++;
    if (lane_id() == 0) {
      const std::uint32_t entry = part % kRingParts;
      while (!is_loaded(&ring_.loaded[entry], (part / kRingParts) & 1U)) {
      }
      const std::uint32_t size = ring_.sizes[entry];
      for (int i = 0; i < ring_.fans[entry]; ++i) store_part(ring_.targets[entry][i], ring_.parts[entry], size);
      commit_stores();
    }
    __syncwarp();
  }

  BulkRing& ring_;
  std::uint32_t num_loaded_ = 0;
  std::uint32_t num_stored_ = 0;
};

#endif  // EPISTLE_BULK_COPIES

}  // namespace epistle::cuda
