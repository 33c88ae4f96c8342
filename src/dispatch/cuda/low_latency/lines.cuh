// Storing and polling lines (line_plan.hpp): one warp, a chunk of 16 lines at a time, four vectors of every lane.
#pragma once

#include <cstdint>

#include "dispatch/cuda/device/rows.cuh"
#include "dispatch/cuda/device/signals.cuh"
#include "dispatch/cuda/low_latency/line_plan.hpp"

namespace epistle::cuda {

inline constexpr int kLineLanes = 8;                         // of a warp, for one line
inline constexpr int kLinesAtOnce = kWarpSize / kLineLanes;  // that one store of a warp moves
inline constexpr int kFlagLane = kLineLanes - 1;             // of a line: half a unit, and the flag

/// The flag of a call: nothing that a row is likely to hold, and not what fresh memory holds.
__device__ inline uint2 line_flag(std::uint32_t epoch) { return make_uint2(epoch, ~epoch); }

/// A barrier in shared memory for one thread to open, once, and others to look at.
__device__ inline void open_later(std::uint64_t& barrier) {
  asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(static_cast<int>(__cvta_generic_to_shared(&barrier)))
               : "memory");
}
__device__ inline void open(std::uint64_t& barrier) {
  asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared.b64 state, [%0];\n}\n" ::"r"(
                   static_cast<int>(__cvta_generic_to_shared(&barrier)))
               : "memory");
}
__device__ inline bool is_open(const std::uint64_t& barrier) {
  std::uint32_t open;
  asm volatile(
      "{\n.reg .pred p;\n"
      "mbarrier.test_wait.parity.shared.b64 p, [%1], 0;\n"
      "selp.u32 %0, 1, 0, p;\n}\n"
      : "=r"(open)
      : "r"(static_cast<int>(__cvta_generic_to_shared(&barrier)))
      : "memory");
  return open != 0;
}

/// How units lie in lines: where what a lane holds of one belongs in the chunk, and how much it is.
struct PairPacking {
  static constexpr int kLinesPerGroup = 2;
  static constexpr int kUnitsPerGroup = kPairUnits;
  __device__ static int offset(int line, int lane) {
    const int odd = line & 1;
    const int unit = line / 2 * kPairUnits + (lane == kFlagLane ? kPairUnits - 1 : odd * kFlagLane + lane);
    return unit * kUnitBytes + (lane == kFlagLane ? odd * (kUnitBytes / 2) : 0);
  }
  __device__ static int num_bytes(int lane) { return lane == kFlagLane ? kUnitBytes / 2 : kUnitBytes; }
};
/// The flag lane has a scale.
struct BlockPacking {
  static constexpr int kLinesPerGroup = 1;
  static constexpr int kUnitsPerGroup = kBlockUnits;
  __device__ static int offset(int line, int lane) { return (line * kBlockUnits + lane) * kUnitBytes; }
  __device__ static int num_bytes(int lane) { return lane == kFlagLane ? 0 : kUnitBytes; }
};

/// A number that the compiler must keep: it would rather work out again what it knows of a lane, which takes longer
/// than what is done with it.
__device__ inline int kept(int number) {
  asm volatile("" : "+r"(number));
  return number;
}

/// Which parts of a chunk a lane holds, one in each of its vectors.
template <class Packing>
struct LaneParts {
  /// From the part in one vector to that in the next.
  static constexpr int kStep = kLinesAtOnce / Packing::kLinesPerGroup * Packing::kUnitsPerGroup * kUnitBytes;

  int at;         ///< of the lane among the bytes of the lines that a warp moves at once
  int first;      ///< of the first part's payload, in the chunk's bytes
  int line;       ///< of the first part, in the chunk
  int num_bytes;  ///< of payload in each
  bool has_flag;  ///< behind it

  __device__ LaneParts() {
    const int lane = lane_id();
    at = kept(lane * kUnitBytes);
    line = kept(lane / kLineLanes);
    first = kept(Packing::offset(lane / kLineLanes, lane % kLineLanes));
    num_bytes = kept(Packing::num_bytes(lane % kLineLanes));
    has_flag = num_bytes != kUnitBytes;
  }
  [[nodiscard]] __device__ int line_of(int vector) const { return line + vector * kLinesAtOnce; }
  [[nodiscard]] __device__ int offset(int vector) const { return first + vector * kStep; }
  /// Of a chunk of which only so many bytes are there.
  [[nodiscard]] __device__ bool is_in(int vector, int chunk_bytes) const {
    return num_bytes > 0 && offset(vector) < chunk_bytes;
  }
};

/// A chunk of a row in the registers of a warp.
template <class Packing, int kNumLines = kChunkLines>
struct ChunkOf {
  using Parts = LaneParts<Packing>;
  static constexpr int kLines = kNumLines;
  static constexpr int kVectors = kLines / kLinesAtOnce;
  static constexpr int kBytes = kLines / Packing::kLinesPerGroup * Packing::kUnitsPerGroup * kUnitBytes;

  uint4 v[kVectors];

  /// Takes the chunk's bytes from `row`, `num_bytes` of them; the rest is zero.
  __device__ void load(const Parts& parts, const std::byte* row, int num_bytes, bool aligned) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      v[i] = make_uint4(0, 0, 0, 0);
      if (!parts.is_in(i, num_bytes)) continue;
      if (!aligned) {
        v[i] = load_bytes(row + parts.offset(i), min(parts.num_bytes, num_bytes - parts.offset(i)));
      } else if (parts.has_flag) {
        const uint2 half = __ldcg(reinterpret_cast<const uint2*>(row + parts.offset(i)));
        v[i] = make_uint4(half.x, half.y, 0, 0);
      } else {
        v[i] = load_vector(row + parts.offset(i));
      }
    }
  }
  /// The same, from shared memory; what is behind the chunk's bytes is of no meaning.
  __device__ void load_shared(const Parts& parts, const std::byte* chunk, int num_bytes) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      v[i] = make_uint4(0, 0, 0, 0);
      if (!parts.is_in(i, num_bytes)) continue;
      if (parts.has_flag) {
        const uint2 half = *reinterpret_cast<const uint2*>(chunk + parts.offset(i));
        v[i] = make_uint4(half.x, half.y, 0, 0);
      } else {
        v[i] = *reinterpret_cast<const uint4*>(chunk + parts.offset(i));
      }
    }
  }
  /// The payload goes to `row`.
  __device__ void store(const Parts& parts, std::byte* row, int num_bytes, bool aligned) const {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (!parts.is_in(i, num_bytes)) continue;
      if (!aligned) {
        store_bytes(row + parts.offset(i), min(parts.num_bytes, num_bytes - parts.offset(i)), v[i]);
      } else if (parts.has_flag) {
        *reinterpret_cast<uint2*>(row + parts.offset(i)) = make_uint2(v[i].x, v[i].y);
      } else {
        store_vector(row + parts.offset(i), v[i]);
      }
    }
  }
  /// Zeros in place of flags, and of what lies behind the chunk's bytes.
  __device__ void clear_behind(const Parts& parts, int num_bytes) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (!parts.is_in(i, num_bytes)) v[i] = make_uint4(0, 0, 0, 0);
      if (parts.has_flag) v[i].z = v[i].w = 0;
    }
  }
  /// Sends the first `num_lines` of its lines.
  __device__ void send(const Parts& parts, std::byte* lines, int num_lines, uint2 flag) const {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (parts.line_of(i) >= num_lines) continue;
      uint4 out = v[i];
      if (parts.has_flag) {
        out.z = flag.x;
        out.w = flag.y;
      }
      store_whole(lines + i * kWarpSize * kUnitBytes + parts.at, out);
    }
  }
  /// Asks for the lines.
  __device__ void ask(const Parts& parts, const std::byte* lines, int num_lines) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (parts.line_of(i) < num_lines) v[i] = load_whole(lines + i * kWarpSize * kUnitBytes + parts.at);
    }
  }
  /// True in a lane that misses none of its flags in what was asked for.
  [[nodiscard]] __device__ bool is_there(const Parts& parts, int num_lines, uint2 flag) const {
    bool there = true;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (parts.has_flag && parts.line_of(i) < num_lines) there = there && v[i].z == flag.x && v[i].w == flag.y;
    }
    return there;
  }
  __device__ bool look(const Parts& parts, const std::byte* lines, int num_lines, uint2 flag) {
    ask(parts, lines, num_lines);
    return is_there(parts, num_lines, flag);
  }
};

using Chunk = ChunkOf<PairPacking>;
using WideChunk = ChunkOf<PairPacking, kWideChunkLines>;
using BlockChunk = ChunkOf<BlockPacking>;

/// gives_up() for waits that nearly always end before they ask. The call is copied, so that the caller's can stay in
/// registers.
__device__ __noinline__ inline bool gives_up_slowly(const CallContext call, int peer, std::uint64_t start_ns,
                                                    std::uint32_t polls) {
  return gives_up(call, peer, start_ns, polls);
}

/// Looks until `look()` is true in all lanes. The same answer in all of them; false when the wait was given up.
template <typename Look>
__device__ inline bool poll_lines(const CallContext& call, int peer, const Look& look) {
  std::uint64_t start_ns = 0;
#pragma unroll 1
  for (std::uint32_t polls = 0; __all_sync(kFullWarp, look()) == 0; ++polls) {
    if (polls % kPollsPerLook != kPollsPerLook - 1) continue;
    if (start_ns == 0) start_ns = now_ns();
    bool given_up = false;
    if (lane_id() == 0) given_up = gives_up_slowly(call, peer, start_ns, polls + 1);
    if (__any_sync(kFullWarp, given_up) != 0) return false;
  }
  return true;
}

/// Lines of a row from the chunk's first one on.
template <class ChunkType = Chunk>
__device__ inline int lines_in_chunk(int row_lines, int chunk) {
  return min(ChunkType::kLines, row_lines - chunk * ChunkType::kLines);
}
template <class ChunkType>
__device__ inline int bytes_in_chunk(std::int64_t row_bytes, int chunk) {
  // A row has fewer than 2^16 chunks.
  return min(ChunkType::kBytes, static_cast<int>(row_bytes) - chunk * ChunkType::kBytes);
}

}  // namespace epistle::cuda
