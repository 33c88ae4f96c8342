// Dispatch by lines, first part: a warp sends a chunk of a token's row to all of its ranks.
#pragma once

#include <type_traits>

#include "dispatch/cuda/low_latency/line_launch.hpp"
#include "dispatch/cuda/low_latency/line_tables.cuh"

namespace epistle::cuda {

/// The place of the block's `warp`-th warp of `num_warps` among those of the first `num_blocks` blocks. Consecutive
/// units go to different SMs.
__device__ inline Worker line_worker(int num_blocks, int warp, int num_warps) {
  return {warp * num_blocks + static_cast<int>(blockIdx.x), num_blocks * num_warps};
}

template <bool kQuantises>
struct LineSender {
  using RowChunk = std::conditional_t<kQuantises, BlockChunk, Chunk>;
  /// A chunk as it lies in the caller's memory.
  using GivenChunk = std::conditional_t<kQuantises, UnquantisedPart, Chunk>;

  const LineDispatchArgs& args;
  const CallContext& call;
  const LineTables& t;
  WarpScratch& scratch;
  typename RowChunk::Parts parts_of_lane = {};

  [[nodiscard]] __device__ const PrepareArgs& routing() const { return args.routing; }
  [[nodiscard]] __device__ const DeviceGroup& group() const { return args.routing.group; }

  /// What a unit takes from the caller's memory: of a row or of weights.
  struct Given {
    GivenChunk chunk;
    float weight;
  };

  /// Asks for it: rows can be on their way before it is known where they go.
  __device__ void load(int unit, Given& given) const {
    const LinePlan& lines = args.lines;
    const int parts = lines.dispatch_parts;
    const auto token = args.lines.by_parts.quotient(unit);
    const int chunk = unit - token * parts - 1;
    if (token >= static_cast<int>(routing().handle.num_tokens)) return;
    if (chunk < 0 || chunk == parts - 2) {
      given.weight = 1.0F;
      if (routing().weights != nullptr && lane_id() < routing().handle.top_k) {
        given.weight = routing().weights[token * routing().weight_stride + lane_id()];
      }
      return;
    }
    if (chunk >= lines.row_chunks) return;
    const bool aligned = common_width(reinterpret_cast<std::uint64_t>(args.rows),
                                      static_cast<std::uint64_t>(args.strides.row), 0) == kVectorBytes;
    constexpr std::int64_t kGivenBytes = kQuantises ? kQuantisedElements * 2 : RowChunk::kBytes;
    const std::byte* from = args.rows + token * args.strides.row + chunk * kGivenBytes;
    const int num_bytes = bytes_in_chunk<RowChunk>(lines.row_bytes, chunk);
    if constexpr (kQuantises) {
      given.chunk.load(from, num_bytes, aligned);
    } else {
      given.chunk.load(parts_of_lane, from, num_bytes, aligned);
    }
  }

  /// A unit's chunk of a row as it travels; of no meaning where the unit is none.
  __device__ void make(const Given& given, int unit, RowChunk& data) const {
    if constexpr (kQuantises) {
      const LinePlan& lines = args.lines;
      const int parts = lines.dispatch_parts;
      const auto token = args.lines.by_parts.quotient(unit);
      const int chunk = unit - token * parts - 1;
      if (token >= static_cast<int>(routing().handle.num_tokens) || chunk < 0 || chunk >= lines.row_chunks) return;
      const int num_bytes = bytes_in_chunk<RowChunk>(lines.row_bytes, chunk);
      quantise(given.chunk, num_bytes, lines.powers_of_two, scratch.quantised);
      data.load_shared(parts_of_lane, scratch.quantised.elements, num_bytes);
      add_scales(data);
      __syncwarp();
    } else {
      data = given.chunk;
    }
  }

  /// All of this rank's rows; one warp among others. `data` and `given` are of its first unit.
  __device__ void run(const Worker& worker, RowChunk& data, Given& given) const {
    const int parts = args.lines.dispatch_parts;
    const int count = static_cast<int>(routing().handle.num_tokens) * parts;
#pragma unroll 1
    for (int unit = worker.idx; unit < count;) {
      const float weight = given.weight;
      const int next = unit + worker.count;
      load(next, given);
      const auto token = args.lines.by_parts.quotient(unit);
      const int chunk = unit - token * parts - 1;
      if (chunk < 0) {
        send_headers(token, weight);
      } else if (chunk == parts - 2) {
        write_token(token, weight);
      } else if (chunk < args.lines.row_chunks) {
        send_row_chunk(token, chunk, data);
      } else {
        send_scale_chunk(token, chunk - args.lines.row_chunks);
      }
      unit = next;
      if (unit < count) make(given, unit, data);
    }
  }

  /// After all, this rank sends nothing: what run() has written of its tokens, each by the same warp.
  __device__ void clear(const Worker& worker) const {
    const HandleArrays& handle = routing().handle;
    const int parts = args.lines.dispatch_parts;
    const int count = static_cast<int>(handle.num_tokens) * parts;
#pragma unroll 1
    for (int unit = worker.idx; unit < count; unit += worker.count) {
      const auto token = args.lines.by_parts.quotient(unit);
      if (unit != token * parts + parts - 1) continue;
      if (lane_id() < handle.sends_per_token) {
        handle.sends[std::int64_t{token} * handle.sends_per_token + lane_id()] = SendPlace{-1, -1, -1, -1};
      }
      if (lane_id() < handle.top_k) handle.dst_row[std::int64_t{token} * handle.top_k + lane_id()] = -1;
    }
  }

 private:
  /// Calls send_to(rank, slot) for every rank of the token.
  template <typename Send>
  __device__ void for_each_rank(int token, const Send& send_to) const {
    const int ranks = group().num_ranks;
    const std::int64_t own_slots = group().section_offset[static_cast<int>(BufferSection::kDispatchLines)] +
                                   args.lines.slot_offset(call.epoch, group().rank, 0);
#pragma unroll 1
    for (int first = 0; first < ranks; first += kWarpSize) {
      const int rank = first + lane_id();
      const bool goes = rank < ranks && t.routing.has(rank, token);
      const std::int32_t pair = goes ? t.routing.before(rank, token) : -1;
#pragma unroll 1
      for (unsigned left = __ballot_sync(kFullWarp, goes); left != 0; left &= left - 1) {
        const int lane = __ffs(static_cast<int>(left)) - 1;
        const auto at = static_cast<std::uint32_t>(__shfl_sync(kFullWarp, pair, lane));
        send_to(first + lane, group().base[first + lane] + own_slots + wide_product(at, args.lines.slot_bytes));
      }
    }
  }

  __device__ void send_row_chunk(int token, int chunk, const RowChunk& data) const {
    const LinePlan& lines = args.lines;
    const int first_line = lines.header_lines + chunk * kChunkLines;
    const int num_lines = lines_in_chunk(lines.row_lines, chunk);
    const uint2 flag = line_flag(call.epoch);
    for_each_rank(token, [&](int /*rank*/, std::byte* slot) {
      data.send(parts_of_lane, slot + first_line * static_cast<int>(kLineBytes), num_lines, flag);
    });
  }

  /// A scale for each line's flag lane: fp32, or an exponent byte.
  __device__ void add_scales(BlockChunk& data) const {
#pragma unroll
    for (int i = 0; i < BlockChunk::kVectors; ++i) {
      if (!parts_of_lane.has_flag) continue;
      const std::uint32_t bits = scratch.quantised.scales[parts_of_lane.line_of(i)];
      data.v[i].x = args.lines.scale_format == ScaleFormat::kFp32 ? bits : bits >> fp8::kMantissaBits;
    }
  }

  /// Scales that travel as they are given, whatever their order in the caller's memory.
  __device__ void send_scale_chunk(int token, int chunk) const {
    const LinePlan& lines = args.lines;
    const std::byte* first = args.scales + token * args.strides.scale_row;
    const int num_bytes = bytes_in_chunk<Chunk>(lines.scale_bytes, chunk);
    const auto element_bytes = static_cast<int>(args.strides.scale_element_bytes);
#pragma unroll 1
    for (int at = lane_id(); at < num_bytes; at += kWarpSize) {
      const int byte = chunk * Chunk::kBytes + at;
      scratch.chunk[at] = first[byte / element_bytes * args.strides.scale_column + byte % element_bytes];
    }
    __syncwarp();
    Chunk data;
    const Chunk::Parts scale_parts;
    data.load_shared(scale_parts, scratch.chunk, num_bytes);
    __syncwarp();
    for_each_rank(token, [&](int /*rank*/, std::byte* slot) {
      data.send(scale_parts, slot + (lines.header_lines + lines.row_lines + chunk * kChunkLines) * kLineBytes,
                lines_in_chunk(lines.scale_lines, chunk), line_flag(call.epoch));
    });
  }

  /// What the receivers must know of a row.
  __device__ void send_headers(int token, float weight) const {
    const int top_k = routing().handle.top_k;
    const int lane = lane_id();
    std::int32_t expert = kNoExpert;
    int rank = -1;
    if (lane < top_k) {
      expert = t.routing.entries[token * top_k + lane];
      if (expert >= 0) rank = t.routing.ranks[token * top_k + lane];
    }
    std::uint32_t* words = scratch.header;
    if (lane == 0) words[0] = static_cast<std::uint32_t>(token);
    if (lane < top_k) {
      // The place among its expert's rows is the same whichever rank is told.
      std::int32_t place = 0;
      if (expert >= 0 && !routing().layout.token_major()) {
        place = t.routing.before(expert_column(group().num_ranks, expert), token);
      }
      words[kHeaderStart + top_k + lane] = static_cast<std::uint32_t>(place);
    }
    const int line = lane / kLineLanes;
    const int in_line = lane % kLineLanes;
    const auto* mine =
        reinterpret_cast<const uint2*>(words + line * static_cast<int>(kLinePayloadBytes / 4) + in_line * 4);
    const uint2 flag = line_flag(call.epoch);
    for_each_rank(token, [&](int dst, std::byte* slot) {
      if (lane < top_k) {
        const bool there = rank == dst;
        words[kHeaderStart + lane] = there ? static_cast<std::uint32_t>(expert - t.all.first[dst]) : ~0U;
        words[kHeaderStart + 2 * top_k + lane] = there ? __float_as_uint(weight) : 0U;
      }
      __syncwarp();
      if (line < args.lines.header_lines) {
        const uint2 low = mine[0];
        const uint2 high = in_line == kFlagLane ? flag : mine[1];
        store_whole(slot + lane * kUnitBytes, make_uint4(low.x, low.y, high.x, high.y));
      }
      __syncwarp();
    });
  }

  /// What the handle knows of a token of this rank. Rows at other ranks are not known here (see LineCompleteArgs);
  /// those at this rank are told by whoever receives them.
  __device__ void write_token(int token, float weight) const {
    const HandleArrays& handle = routing().handle;
    const TokenRanks ranks(t.routing, token, handle.top_k, routing().layout.params().order);
    const std::int32_t pair = ranks.is_leader() ? t.routing.before(ranks.rank, token) : -1;
    const int lane = lane_id();
    const int top_k = handle.top_k;
    const float rank_weight = ranks.rank_weight(weight, top_k);
    if (lane < top_k) {
      const std::int64_t entry = std::int64_t{token} * top_k + lane;
      handle.expert_ids[entry] = ranks.expert;
      handle.weights[entry] = weight;
      // A row at another rank is somewhere.
      if (ranks.rank != group().rank) handle.dst_row[entry] = ranks.expert < 0 ? -1 : 0;
    }
    const std::int64_t first = std::int64_t{token} * handle.sends_per_token;
    if (ranks.is_leader()) {
      SendPlace& send = handle.sends[first + ranks.slot];
      send.dst_rank = ranks.rank;
      send.stage = ranks.rank == group().rank ? -1 : stage_begin(ranks.rank) + pair;
      handle.send_weights[first + ranks.slot] = rank_weight;
    }
    const int num_ranks = __popc(ranks.leaders);
    if (lane >= num_ranks && lane < handle.sends_per_token) {
      handle.sends[first + lane] = SendPlace{-1, -1, -1, -1};
    }
  }
  /// Row of this rank's stage in which the first of its pairs with `dst` comes back.
  [[nodiscard]] __device__ std::int32_t stage_begin(int dst) const {
    std::int32_t begin = 0;
#pragma unroll 1
    for (int rank = 0; rank < dst; ++rank) begin += rank != group().rank ? t.routing.count(rank) : 0;
    return begin;
  }
};

}  // namespace epistle::cuda
