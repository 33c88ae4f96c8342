// Moving rows: one warp copies one row to any number of places.
#pragma once

#include <cstddef>
#include <cstdint>

namespace epistle::cuda {

inline constexpr unsigned kFullWarp = 0xffffffffU;
inline constexpr int kWarpSize = 32;
inline constexpr int kVectorBytes = 16;
/// 16-byte vectors that a lane holds at once.
inline constexpr int kVectorsInFlight = 8;

/// A warp's place among the warps that share a kind of work.
struct Worker {
  int idx;
  int count;
};

__device__ inline int lane_id() { return static_cast<int>(threadIdx.x) & (kWarpSize - 1); }

/// The units of a work queue that a warp does: its own first, then whatever the warps of all blocks have left, each
/// asked for one ahead so that nobody waits for the answer.
class UnitQueue {
 public:
  __device__ UnitQueue(std::uint32_t* taken, const Worker& worker)
      : taken_(taken), count_(worker.count), next_(worker.idx) {}
  /// The same in all lanes.
  __device__ int take() {
    const int unit = __shfl_sync(kFullWarp, next_, 0);
    if (lane_id() == 0) next_ = count_ + static_cast<int>(atomicAdd(taken_, 1U));
    return unit;
  }

 private:
  std::uint32_t* taken_;
  int count_;
  int next_;
};

/// Asks for what will be read soon. One warp.
__device__ inline void prefetch_row(const std::byte* from, std::int64_t num_bytes) {
  constexpr int kLineBytes = 128;
  for (std::int64_t at = lane_id() * kLineBytes; at < num_bytes; at += kWarpSize * kLineBytes) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(from + at));
  }
}

/// Reads past the L1 cache: rows are used once.
__device__ inline uint4 load_vector(const std::byte* from) {
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from)
               : "memory");
  return v;
}
__device__ inline void store_vector(std::byte* to, const uint4& v) {
  asm volatile("st.global.L1::no_allocate.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v.x), "r"(v.y), "r"(v.z),
               "r"(v.w)
               : "memory");
}

// Any address. Not inlined: what is executed once in a call is fetched while the call waits for it, and few rows lie
// so.
__device__ __noinline__ inline uint4 load_bytes(const std::byte* from, int num_bytes) {
  std::uint64_t words[2] = {};
#pragma unroll 1
  for (int b = 0; b < num_bytes; ++b) {
    const std::uint64_t value = static_cast<std::uint64_t>(from[b]) << (8 * (b & 7));
    if (b < 8) {
      words[0] |= value;
    } else {
      words[1] |= value;
    }
  }
  return make_uint4(static_cast<std::uint32_t>(words[0]), static_cast<std::uint32_t>(words[0] >> 32),
                    static_cast<std::uint32_t>(words[1]), static_cast<std::uint32_t>(words[1] >> 32));
}
__device__ __noinline__ inline void store_bytes(std::byte* to, int num_bytes, const uint4 v) {
  const std::uint64_t words[2] = {std::uint64_t{v.y} << 32 | v.x, std::uint64_t{v.w} << 32 | v.z};
#pragma unroll 1
  for (int b = 0; b < num_bytes; ++b) to[b] = static_cast<std::byte>((b < 8 ? words[0] : words[1]) >> (8 * (b & 7)));
}

/// Widest of 16, 4 and 1 bytes that divides all of the given addresses and sizes.
__host__ __device__ inline int common_width(std::uint64_t a, std::uint64_t b, std::uint64_t c) {
  const std::uint64_t bits = a | b | c;
  return (bits & 15U) == 0 ? 16 : (bits & 3U) == 0 ? 4 : 1;
}

template <typename Word>
__device__ inline void copy_words(const std::byte* from, std::byte* to, std::int64_t num_bytes) {
  const auto* source = reinterpret_cast<const Word*>(from);
  auto* target = reinterpret_cast<Word*>(to);
  const auto count = num_bytes / static_cast<std::int64_t>(sizeof(Word));
  for (std::int64_t i = lane_id(); i < count; i += kWarpSize) target[i] = __ldcg(source + i);
}

/// Any alignment; for scales, and for payloads that the caller did not align.
__device__ inline void copy_any(const std::byte* from, std::byte* to, std::int64_t num_bytes, int width) {
  switch (width) {
    case 16:
      return copy_words<uint4>(from, to, num_bytes);
    case 4:
      return copy_words<std::uint32_t>(from, to, num_bytes);
    default:
      return copy_words<std::uint8_t>(from, to, num_bytes);
  }
}

/// Writes one row to the places of the lanes in `mask`, each lane's own in `target`. Any alignment.
__device__ inline void copy_row_to(unsigned mask, std::byte* target, const std::byte* from, std::int64_t num_bytes) {
  const auto to_of = [target](int lane) {
    return reinterpret_cast<std::byte*>(__shfl_sync(kFullWarp, reinterpret_cast<std::uint64_t>(target), lane));
  };
  const std::uint64_t bits = reinterpret_cast<std::uint64_t>(target) | reinterpret_cast<std::uint64_t>(from) |
                             static_cast<std::uint64_t>(num_bytes);
  const bool mine = (mask >> lane_id() & 1U) != 0;
  if (__any_sync(kFullWarp, mine && (bits & 15U) != 0)) {
    for (unsigned left = mask; left != 0; left &= left - 1) {
      std::byte* to = to_of(__ffs(static_cast<int>(left)) - 1);
      copy_any(from, to, num_bytes,
               common_width(reinterpret_cast<std::uint64_t>(from), reinterpret_cast<std::uint64_t>(to),
                            static_cast<std::uint64_t>(num_bytes)));
    }
    return;
  }
  const int num_vectors = static_cast<int>(num_bytes / kVectorBytes);
  for (int begin = lane_id(); begin - lane_id() < num_vectors; begin += kVectorsInFlight * kWarpSize) {
    uint4 v[kVectorsInFlight];
#pragma unroll
    for (int i = 0; i < kVectorsInFlight; ++i) {
      const int at = begin + i * kWarpSize;
      if (at < num_vectors) v[i] = load_vector(from + static_cast<std::int64_t>(at) * kVectorBytes);
    }
    for (unsigned left = mask; left != 0; left &= left - 1) {
      std::byte* to = to_of(__ffs(static_cast<int>(left)) - 1);
#pragma unroll
      for (int i = 0; i < kVectorsInFlight; ++i) {
        const int at = begin + i * kWarpSize;
        if (at < num_vectors) store_vector(to + static_cast<std::int64_t>(at) * kVectorBytes, v[i]);
      }
    }
  }
}

/// A row whose elements lie apart.
struct SpacedRow {
  const std::byte* first;
  std::int64_t stride;  ///< bytes from one element to the next
  std::int64_t element_bytes;
  std::int64_t num_bytes;  ///< of all elements
};

/// As copy_row_to(). Not inlined: only scales in column order come here, and the rows' loops keep their registers.
__device__ __noinline__ inline void gather_row_to(unsigned mask, std::byte* target, const SpacedRow row) {
  const auto to_of = [target](unsigned left) {
    const int lane = __ffs(static_cast<int>(left)) - 1;
    return reinterpret_cast<std::byte*>(__shfl_sync(kFullWarp, reinterpret_cast<std::uint64_t>(target), lane));
  };
  const std::uint64_t bits = reinterpret_cast<std::uint64_t>(target) | reinterpret_cast<std::uint64_t>(row.first) |
                             static_cast<std::uint64_t>(row.stride);
  const bool mine = (mask >> lane_id() & 1U) != 0;
  const bool unaligned = __any_sync(kFullWarp, mine && (bits & 3U) != 0) != 0;
  const bool by_words = row.element_bytes == 4 && !unaligned;
  const std::int64_t count = by_words ? row.num_bytes / 4 : row.num_bytes;
  for (std::int64_t begin = 0; begin < count; begin += kWarpSize) {
    const std::int64_t i = begin + lane_id();
    const bool inside = i < count;
    std::uint32_t value = 0;
    if (inside && by_words) {
      value = __ldcg(reinterpret_cast<const std::uint32_t*>(row.first + i * row.stride));
    } else if (inside) {
      const std::byte* from = row.first + i / row.element_bytes * row.stride + i % row.element_bytes;
      value = __ldcg(reinterpret_cast<const std::uint8_t*>(from));
    }
    for (unsigned left = mask; left != 0; left &= left - 1) {
      std::byte* to = to_of(left);
      if (inside && by_words) {
        reinterpret_cast<std::uint32_t*>(to)[i] = value;
      } else if (inside) {
        to[i] = static_cast<std::byte>(value);
      }
    }
  }
}

/// Zeroes one row.
__device__ inline void zero_row(std::byte* row, std::int64_t num_bytes) {
  const int width = common_width(reinterpret_cast<std::uint64_t>(row), static_cast<std::uint64_t>(num_bytes), 0);
  if (width == 16) {
    for (std::int64_t i = lane_id(); i < num_bytes / kVectorBytes; i += kWarpSize) {
      store_vector(row + i * kVectorBytes, make_uint4(0, 0, 0, 0));
    }
  } else {
    for (std::int64_t i = lane_id(); i < num_bytes; i += kWarpSize) row[i] = std::byte{0};
  }
}

}  // namespace epistle::cuda
