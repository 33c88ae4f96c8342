// Dispatch by lines, second part: a warp takes a chunk of a received row to its output rows, and the first chunk's warp
// describes them.
#pragma once

#include "dispatch/cuda/low_latency/send_lines.cuh"
#include "dispatch/cuda/prepare/prepare_describe.cuh"

namespace epistle::cuda {

template <bool kQuantises>
struct LineReceiver {
  using RowChunk = std::conditional_t<kQuantises, BlockChunk, Chunk>;

  const LineDispatchArgs& args;
  const CallContext& call;
  const LineTables& t;
  WarpScratch& scratch;

  [[nodiscard]] __device__ const PrepareArgs& routing() const { return args.routing; }
  [[nodiscard]] __device__ const DeviceGroup& group() const { return args.routing.group; }
  [[nodiscard]] __device__ const DispatchLayout& layout() const { return args.routing.layout; }

  /// A part of a row, as far as it has come.
  struct Unit {
    RowChunk data;
    bool there = false;
  };

  /// Looks for the first unit of a warp before it is known whether there is such a row, until `placed`.
  __device__ void watch(int unit, const volatile int& placed, Unit& first) const {
    const Part part = part_of(unit);
    if (part.idx >= args.lines.max_tokens) return;
    do {
      first.there = __all_sync(kFullWarp, look(part, first.data)) != 0;
    } while (!first.there && __any_sync(kFullWarp, placed != 0) == 0);
  }

  /// All rows that this rank receives, its own among them; one warp among others. Sources take turns.
  __device__ void run(const Worker& worker, Unit& current) const {
    const int ranks = group().num_ranks;
    int longest = 0;
#pragma unroll 1
    for (int s = 0; s < ranks; ++s) longest = max(longest, t.pair_begin[s + 1] - t.pair_begin[s]);
    const int count = longest * ranks * args.lines.dispatch_parts;
#pragma unroll 1
    for (int unit = worker.idx; unit < count; unit += worker.count) {
      const Part part = part_of(unit);
      if (part.idx < t.pair_begin[part.source + 1] - t.pair_begin[part.source]) {
        if (!current.there && !poll_lines(call, part.source, [&] { return look(part, current.data); })) return;
        open_header();
        take(part, current.data);
        __syncwarp();
      }
      current.there = false;
    }
  }

 private:
  /// Which part of which row: the header (`chunk` -1), a chunk of the row, or of its scales.
  struct Part {
    int source;
    int idx;  ///< of the row among the source's
    int chunk;
  };
  /// The rows of this rank that a received row goes to: a lane for every top-k position.
  struct Places {
    std::int32_t row = -1;
    unsigned mask = 0;  ///< lanes that have one
  };

  [[nodiscard]] __device__ Part part_of(int unit) const {
    const int ranks = group().num_ranks;
    const int parts = args.lines.dispatch_parts;
    const auto row = args.lines.by_parts.quotient(unit);
    const auto idx = args.lines.by_ranks.quotient(row);
    int source = group().rank + row - idx * ranks;
    if (source >= ranks) source -= ranks;
    return {source, idx, unit - row * parts - 1};
  }

  /// One look at a part, and at the header of its row, which is kept; true in a lane that misses nothing.
  __device__ bool look(const Part& part, RowChunk& data) const {
    const LinePlan& lines = args.lines;
    const uint2 flag = line_flag(call.epoch);
    const std::byte* slot = group().section(group().rank, BufferSection::kDispatchLines) +
                            lines.slot_offset(call.epoch, part.source, part.idx);
    const bool in_header = lane_id() / kLineLanes < lines.header_lines;
    uint4 head = make_uint4(0, 0, 0, 0);
    if (in_header) head = load_line_vector(slot + lane_id() * kUnitBytes);
    bool there = true;
    if (part.chunk >= 0) {
      // Chunks of scales, as those of rows, are four vectors at most.
      const bool in_row = part.chunk < lines.row_chunks;
      const int chunk = in_row ? part.chunk : part.chunk - lines.row_chunks;
      const int first_line = lines.header_lines + (in_row ? 0 : lines.row_lines) + chunk * kChunkLines;
      there = data.look(slot + first_line * kLineBytes,
                        lines_in_chunk(in_row ? lines.row_lines : lines.scale_lines, chunk), flag);
    }
    if (in_header) {
      const bool has_flag = lane_id() % kLineLanes == kFlagLane;
      there = there && (!has_flag || (head.z == flag.x && head.w == flag.y));
      *reinterpret_cast<uint4*>(scratch.head + lane_id()) = head;
    }
    return there;
  }

  /// The words of the header that was looked at last: without the flags.
  __device__ void open_header() const {
    __syncwarp();
    const int line = lane_id() / kLineLanes;
    const uint4 head = *reinterpret_cast<const uint4*>(scratch.head + lane_id());
    auto* words = scratch.header + line * static_cast<int>(kLinePayloadBytes / 4) + lane_id() % kLineLanes * 4;
    if (line < args.lines.header_lines) {
      reinterpret_cast<uint2*>(words)[0] = make_uint2(head.x, head.y);
      if (lane_id() % kLineLanes != kFlagLane) reinterpret_cast<uint2*>(words)[1] = make_uint2(head.z, head.w);
    }
    __syncwarp();
  }

  /// Takes a part to where it belongs.
  __device__ void take(const Part& part, const RowChunk& data) const {
    const LinePlan& lines = args.lines;
    const Places places = places_of(part.source, part.idx);
    if (part.chunk < 0) {
      describe(part.source, part.idx, places);
    } else if (part.chunk < lines.row_chunks) {
      store_row(places, data, part.chunk);
      if constexpr (kQuantises) store_block_scales(places, data, part.chunk);
    } else {
      if constexpr (!kQuantises) store_scales(places, data, part.chunk - lines.row_chunks);
    }
  }

  [[nodiscard]] __device__ Places places_of(int source, int idx) const {
    const int top_k = routing().handle.top_k;
    Places places;
    if (layout().token_major()) {
      places.row = lane_id() == 0 ? t.pair_begin[source] + idx : -1;
    } else if (lane_id() < top_k) {
      const auto expert = static_cast<std::int32_t>(scratch.header[kHeaderStart + lane_id()]);
      const auto place = static_cast<std::int32_t>(scratch.header[kHeaderStart + top_k + lane_id()]);
      if (expert >= 0) places.row = t.begin[source * t.num_local + expert] + place;
    }
    places.mask = __ballot_sync(kFullWarp, places.row >= 0);
    return places;
  }

  template <typename Store>
  __device__ static void for_each_row(const Places& places, const Store& store) {
#pragma unroll 1
    for (unsigned left = places.mask; left != 0; left &= left - 1) {
      store(__shfl_sync(kFullWarp, places.row, __ffs(static_cast<int>(left)) - 1));
    }
  }

  __device__ void store_row(const Places& places, const RowChunk& data, int chunk) const {
    std::byte* rows = group().section(group().rank, BufferSection::kReceiveRows, args.buffer);
    const int num_bytes = bytes_in_chunk<RowChunk>(args.lines.row_bytes, chunk);
    const bool aligned = args.lines.row_bytes % kUnitBytes == 0;
    for_each_row(places, [&](std::int32_t row) {
      data.store(rows + wide_product(row, args.lines.row_bytes) + chunk * RowChunk::kBytes, num_bytes, aligned);
    });
  }
  __device__ void store_scales(const Places& places, const Chunk& data, int chunk) const {
    std::byte* scales = group().section(group().rank, BufferSection::kReceiveScales, args.buffer);
    const std::int64_t scale_bytes = args.lines.scale_bytes;
    const int num_bytes = bytes_in_chunk<Chunk>(scale_bytes, chunk);
    for_each_row(places, [&](std::int32_t row) {
      data.store(scales + wide_product(row, scale_bytes) + chunk * Chunk::kBytes, num_bytes,
                 scale_bytes % kUnitBytes == 0);
    });
  }
  /// The scales of a chunk's blocks, each with the flag lane of a line: fp32 words, or exponent bytes. The last chunk's
  /// warp also fills up the row of scales. (Scales of low_latency are in the order of rows.)
  __device__ void store_block_scales(const Places& places, const BlockChunk& data, int chunk) const {
    const LinePlan& lines = args.lines;
    std::byte* scales = group().section(group().rank, BufferSection::kReceiveScales, args.buffer);
    const bool words = lines.scale_format == ScaleFormat::kFp32;
    const int num_scales = static_cast<int>(fp8::num_scales(lines.row_bytes));
    const bool fills = !words && chunk == lines.row_chunks - 1;
    const int fill = num_scales + lane_id();
    for_each_row(places, [&](std::int32_t row) {
      std::byte* row_scales = scales + wide_product(row, lines.scale_bytes);
#pragma unroll
      for (int i = 0; i < BlockChunk::kVectors; ++i) {
        const BlockChunk::Part part(i);
        const int scale = chunk * kQuantisedBlocks + part.line;
        if (!part.has_flag || part.line >= kQuantisedBlocks || scale >= num_scales) continue;
        if (words) {
          reinterpret_cast<std::uint32_t*>(row_scales)[scale] = data.v[i].x;
        } else {
          row_scales[scale] = static_cast<std::byte>(data.v[i].x);
        }
      }
      if (fills && fill < lines.scale_bytes) row_scales[fill] = std::byte{0};
    });
  }

  /// What the handle knows of a received row.
  __device__ void describe(int source, int idx, const Places& places) const {
    const HandleArrays& handle = routing().handle;
    const int top_k = handle.top_k;
    const int lane = lane_id();
    const std::int64_t pair = t.pair_begin[source] + idx;
    const auto token = static_cast<std::int32_t>(scratch.header[0]);
    const int in_top_k = lane < top_k ? lane : 0;
    const auto expert = static_cast<std::int32_t>(scratch.header[kHeaderStart + in_top_k]);
    const std::uint32_t weight = scratch.header[kHeaderStart + 2 * top_k + in_top_k];
    const bool token_major = layout().token_major();
    if (token_major) {
      if (lane < top_k) {
        handle.local_expert_ids[pair * top_k + lane] = expert;
        handle.row_weights[pair * top_k + lane] = __uint_as_float(weight);
      }
      if (lane == 0) {
        handle.src_rank[pair] = source;
        handle.src_token[pair] = token;
      }
    } else {
      auto* record = reinterpret_cast<std::uint32_t*>(handle.pair_records + pair * layout().pair_record_bytes());
      if (lane < top_k) {
        record[2 + lane] = static_cast<std::uint32_t>(places.row);
        record[2 + top_k + lane] = weight;
      }
      if (lane < 2) record[lane] = lane == 0 ? static_cast<std::uint32_t>(source) : static_cast<std::uint32_t>(token);
      if (places.row >= 0) {
        handle.src_rank[places.row] = source;
        handle.src_token[places.row] = token;
        handle.row_expert[places.row] = expert;
        handle.row_weights[places.row] = __uint_as_float(weight);
      }
    }
    if (source != group().rank) return;
    // This rank's own tokens: where combine finds their rows here.
    const std::int32_t own_row = token_major ? static_cast<std::int32_t>(pair) : places.row;
    if (lane < top_k && expert >= 0) handle.dst_row[std::int64_t{token} * top_k + lane] = own_row;
    const std::int32_t first_row =
        token_major ? own_row : __shfl_sync(kFullWarp, places.row, __ffs(static_cast<int>(places.mask)) - 1);
    if (lane == 0) {
      SendPlace& send = handle.sends[std::int64_t{token} * handle.sends_per_token + scratch.header[1]];
      send.row = first_row;
      send.pair = static_cast<std::int32_t>(pair);
    }
  }
};

/// Rows of the output that nothing has come for: described as padding, and zeroed where the caller asks for it.
struct LinePadding {
  const LineDispatchArgs& args;
  const LineTables& t;
  Worker worker;

  [[nodiscard]] __device__ const DeviceGroup& group() const { return args.routing.group; }
  [[nodiscard]] __device__ const DispatchLayout& layout() const { return args.routing.layout; }

  __device__ void run() const {
    const std::int32_t num_rows = t.all.out_rows[group().rank];
    if (layout().token_major()) {
      const std::int32_t num_pairs = t.pair_begin[group().num_ranks];
      describe_token_rows(num_pairs, num_rows);
      zero(num_pairs, num_rows);
      return;
    }
#pragma unroll 1
    for (int first = worker.idx * kWarpSize; first < t.num_local; first += worker.count * kWarpSize) {
      describe_groups(first);
    }
    if (args.zero_padding) zero_groups();
    if (layout().params().layout == OutputLayout::kExpertBlocks) return;
    const std::int32_t last_end = t.num_local > 0 ? group_end(t.num_local - 1) : 0;
    zero(last_end, num_rows);
    describe(last_end, num_rows, worker.idx * kWarpSize + lane_id(), worker.count * kWarpSize);
  }

 private:
  [[nodiscard]] __device__ int expert(int local) const { return t.all.first[group().rank] + local; }
  [[nodiscard]] __device__ std::int32_t content_end(int local) const {
    return t.all.group[expert(local)] + t.all.total[expert(local)];
  }
  [[nodiscard]] __device__ std::int32_t group_end(int local) const {
    return t.all.group[expert(local)] + static_cast<std::int32_t>(layout().group_rows(t.all.total[expert(local)]));
  }
  /// The padding of 32 groups: each lane finds out what is to be described of one, all describe it.
  __device__ void describe_groups(int first_local) const {
    const bool blocks = layout().params().layout == OutputLayout::kExpertBlocks;
    const int local = first_local + lane_id();
    std::int32_t begin = 0;
    std::int32_t end = 0;
    if (local < t.num_local) {
      begin = content_end(local);
      end = group_end(local);
      if (blocks) {
        // Blocks stay where they are: what was padding after the last dispatch is described.
        std::int32_t& clean_rows = args.routing.handle.clean_rows[local];
        const std::int32_t clean_begin = end - clean_rows;
        clean_rows = end - begin;
        end = clean_begin;
      }
    }
#pragma unroll 1
    for (unsigned left = __ballot_sync(kFullWarp, begin < end); left != 0; left &= left - 1) {
      const int lane = __ffs(static_cast<int>(left)) - 1;
      describe(__shfl_sync(kFullWarp, begin, lane), __shfl_sync(kFullWarp, end, lane), lane_id(), kWarpSize);
    }
  }
  __device__ void zero_groups() const {
    for (int local = 0; local < t.num_local; ++local) zero(content_end(local), group_end(local));
  }
  __device__ __noinline__ static void describe_some(const PrepareArgs& args, std::int64_t begin, std::int64_t end,
                                                    int first, int step) {
    describe_padding(args, begin, end, first, step);
  }
  __device__ void describe(std::int64_t begin, std::int64_t end, int first, int step) const {
    if (begin + first < end) describe_some(args.routing, begin, end, first, step);
  }
  __device__ void describe_token_rows(std::int32_t begin, std::int32_t end) const {
    const HandleArrays& handle = args.routing.handle;
    const int top_k = handle.top_k;
#pragma unroll 1
    for (std::int64_t row = begin + worker.idx; row < end; row += worker.count) {
      if (lane_id() < top_k) {
        handle.local_expert_ids[row * top_k + lane_id()] = -1;
        handle.row_weights[row * top_k + lane_id()] = 0.0F;
      }
      if (lane_id() == 0) {
        handle.src_rank[row] = -1;
        handle.src_token[row] = -1;
      }
    }
  }
  __device__ void zero(std::int32_t begin, std::int32_t end) const {
    if (args.zero_padding && begin + worker.idx < end)
      zero_some(args, t.all.out_rows[group().rank], begin, end, worker);
  }
  __device__ __noinline__ static void zero_some(const LineDispatchArgs& args, std::int32_t num_rows, std::int32_t begin,
                                                std::int32_t end, const Worker worker) {
    const DispatchLayout& layout = args.routing.layout;
    const DeviceGroup& group = args.routing.group;
    const std::int64_t row_bytes = layout.params().row_bytes;
    const std::int64_t scale_bytes = layout.params().scale_bytes;
    std::byte* rows = group.section(group.rank, BufferSection::kReceiveRows, args.buffer);
    std::byte* scales = group.section(group.rank, BufferSection::kReceiveScales, args.buffer);
    const ScalePlaces at = layout.scale_places(num_rows);
#pragma unroll 1
    for (std::int64_t row = begin + worker.idx; row < end; row += worker.count) {
      zero_row(rows + row * row_bytes, row_bytes);
      if (scale_bytes == 0) continue;
      if (!at.in_columns()) {
        zero_row(scales + row * scale_bytes, scale_bytes);
        continue;
      }
      for (std::int64_t word = lane_id(); word < at.num_words(); word += kWarpSize) {
        *reinterpret_cast<std::uint32_t*>(scales + at.offset(row, word)) = 0;
      }
    }
  }
};

}  // namespace epistle::cuda
