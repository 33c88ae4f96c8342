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
    if (token >= static_cast<int>(routing().handle.num_tokens) || chunk >= lines.row_chunks) return;
    if (chunk < 0) {
      given.weight = 1.0F;
      if (routing().weights != nullptr && lane_id() < routing().handle.top_k) {
        given.weight = routing().weights[token * routing().weight_stride + lane_id()];
      }
      return;
    }
    const bool aligned = common_width(reinterpret_cast<std::uint64_t>(args.rows),
                                      static_cast<std::uint64_t>(args.strides.row), 0) == kVectorBytes;
    constexpr std::int64_t kGivenBytes = kQuantises ? kQuantisedElements * 2 : RowChunk::kBytes;
    given.chunk.load(args.rows + token * args.strides.row + chunk * kGivenBytes,
                     bytes_in_chunk<RowChunk>(lines.row_bytes, chunk), aligned);
  }

  /// A unit's chunk of a row as it travels; of no meaning where the unit is none.
  __device__ void make(const Given& given, int unit, RowChunk& data) const {
    if constexpr (kQuantises) {
      const LinePlan& lines = args.lines;
      const int parts = lines.dispatch_parts;
      const auto token = args.lines.by_parts.quotient(unit);
      const int chunk = unit - token * parts - 1;
      if (token >= static_cast<int>(routing().handle.num_tokens) || chunk < 0) return;
      const int num_bytes = bytes_in_chunk<RowChunk>(lines.row_bytes, chunk);
      quantise(given.chunk, num_bytes, lines.powers_of_two, scratch.quantised);
      data.load_shared(scratch.quantised.elements, num_bytes);
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
      if (unit != token * parts) continue;
      if (lane_id() < handle.sends_per_token) {
        handle.sends[std::int64_t{token} * handle.sends_per_token + lane_id()] = SendPlace{-1, -1, -1, -1};
      }
      if (lane_id() < handle.top_k) handle.dst_row[std::int64_t{token} * handle.top_k + lane_id()] = -1;
    }
  }

 private:
  [[nodiscard]] __device__ TokenRanks ranks_of(int token) const {
    return {t.routing, token, routing().handle.top_k, routing().layout.params().order};
  }
  [[nodiscard]] __device__ std::int32_t pair_of(const TokenRanks& ranks, int token) const {
    return ranks.is_leader() ? t.routing.before(ranks.rank, token) : -1;
  }

  /// Calls send_to(leader, slot) for every rank of the token.
  template <typename Send>
  __device__ void for_each_rank(const TokenRanks& ranks, std::int32_t pair, const Send& send_to) const {
#pragma unroll 1
    for (unsigned left = ranks.leaders; left != 0; left &= left - 1) {
      const int leader = __ffs(static_cast<int>(left)) - 1;
      const int dst = __shfl_sync(kFullWarp, ranks.rank, leader);
      const std::int32_t at = __shfl_sync(kFullWarp, pair, leader);
      send_to(leader, group().section(dst, BufferSection::kDispatchLines) +
                          args.lines.slot_offset(call.epoch, group().rank, at));
    }
  }

  __device__ void send_row_chunk(int token, int chunk, const RowChunk& data) const {
    const LinePlan& lines = args.lines;
    const TokenRanks ranks = ranks_of(token);
    for_each_rank(ranks, pair_of(ranks, token), [&](int /*leader*/, std::byte* slot) {
      data.send(slot + (lines.header_lines + chunk * kChunkLines) * kLineBytes, lines_in_chunk(lines.row_lines, chunk),
                line_flag(call.epoch));
    });
  }

  /// A scale for each line's flag lane: fp32, or an exponent byte.
  __device__ void add_scales(BlockChunk& data) const {
#pragma unroll
    for (int i = 0; i < BlockChunk::kVectors; ++i) {
      const BlockChunk::Part part(i);
      if (!part.has_flag) continue;
      const std::uint32_t bits = scratch.quantised.scales[part.line];
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
    data.load_shared(scratch.chunk, num_bytes);
    __syncwarp();
    const TokenRanks ranks = ranks_of(token);
    for_each_rank(ranks, pair_of(ranks, token), [&](int /*leader*/, std::byte* slot) {
      data.send(slot + (lines.header_lines + lines.row_lines + chunk * kChunkLines) * kLineBytes,
                lines_in_chunk(lines.scale_lines, chunk), line_flag(call.epoch));
    });
  }

  __device__ void send_headers(int token, float weight) const {
    const TokenRanks ranks = ranks_of(token);
    const std::int32_t pair = pair_of(ranks, token);
    // The place among its expert's rows is the same whichever rank is told.
    std::int32_t place = 0;
    if (ranks.expert >= 0 && !routing().layout.token_major()) {
      place = t.routing.before(expert_column(group().num_ranks, ranks.expert), token);
    }
    for_each_rank(ranks, pair,
                  [&](int leader, std::byte* slot) { send_header(token, leader, ranks, place, weight, slot); });
    // Nobody waits for what the handle knows.
    write_token(token, ranks, pair, weight);
  }

  /// What the receiver must know of a row.
  __device__ void send_header(int token, int leader, const TokenRanks& ranks, std::int32_t place, float weight,
                              std::byte* slot) const {
    const int top_k = routing().handle.top_k;
    const int lane = lane_id();
    const int dst = __shfl_sync(kFullWarp, ranks.rank, leader);
    const int dst_slot = __shfl_sync(kFullWarp, ranks.slot, leader);
    std::uint32_t* words = scratch.header;
    if (lane < top_k) {
      const bool there = ranks.rank == dst;
      const int first = t.all.first[dst];
      words[kHeaderStart + lane] = there ? static_cast<std::uint32_t>(ranks.expert - first) : ~0U;
      words[kHeaderStart + top_k + lane] = static_cast<std::uint32_t>(place);
      words[kHeaderStart + 2 * top_k + lane] = there ? __float_as_uint(weight) : 0U;
    }
    if (lane == 0) {
      words[0] = static_cast<std::uint32_t>(token);
      words[1] = static_cast<std::uint32_t>(dst_slot);
    }
    __syncwarp();
    const int line = lane / kLineLanes;
    const int in_line = lane % kLineLanes;
    if (line < args.lines.header_lines) {
      const int word = line * static_cast<int>(kLinePayloadBytes / 4) + in_line * 4;
      const auto* pairs = reinterpret_cast<const uint2*>(words + word);
      const uint2 low = pairs[0];
      const uint2 high = in_line == kFlagLane ? line_flag(call.epoch) : pairs[1];
      store_line_vector(slot + lane * kUnitBytes, make_uint4(low.x, low.y, high.x, high.y));
    }
    __syncwarp();
  }

  /// What the handle knows of a token of this rank. Rows at other ranks are not known here (see LineCompleteArgs);
  /// those at this rank are told by whoever receives them.
  __device__ void write_token(int token, const TokenRanks& ranks, std::int32_t pair, float weight) const {
    const HandleArrays& handle = routing().handle;
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
