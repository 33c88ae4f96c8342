// Dispatch by lines, second part: a warp takes a chunk of a received row to its output rows, and the first chunk's warp
// describes them.
#pragma once

#include "dispatch/cuda/low_latency/row_flags.cuh"
#include "dispatch/cuda/low_latency/send_lines.cuh"
#include "dispatch/cuda/prepare/prepare_describe.cuh"

namespace epistle::cuda {

template <bool kQuantises, class Args>
struct LineReceiver {
  using RowChunk = std::conditional_t<kQuantises, BlockChunk, Chunk>;

  const Args& args;
  const CallContext& call;
  const LineTables& t;
  WarpScratch& scratch;
  typename RowChunk::Parts parts = {};

  [[nodiscard]] __device__ const PrepareArgs& routing() const { return args.routing; }
  [[nodiscard]] __device__ const DeviceGroup& group() const { return args.routing.group; }
  [[nodiscard]] __device__ const DispatchLayout& layout() const { return args.routing.layout; }

  /// A part of a row, as far as it has come, and the header of its row.
  struct Unit {
    RowChunk data;
    uint4 head = {};
    bool there = false;
  };

  /// Looks for the first unit of a warp before it is known whether there is such a row, until `placed`.
  __device__ void watch(int unit, const std::uint64_t& placed, Unit& first) const {
    const Part part = part_of(unit);
    if (part.idx >= args.lines.max_tokens) return;
    do {
      first.there = __all_sync(kFullWarp, look(part, first)) != 0;
    } while (!first.there && __any_sync(kFullWarp, is_open(placed)) == 0);
  }

  /// All rows that this rank receives, its own among them; one warp among others. Sources take turns.
  __device__ void run(const Worker& worker, Unit& current) const {
    const int ranks = group().num_ranks;
    int longest = 0;
#pragma unroll 1
    for (int s = 0; s < ranks; ++s) longest = max(longest, t.pair_begin[s + 1] - t.pair_begin[s]);
    const int count = longest * ranks * args.lines.dispatch_parts;
    Part part = part_of(worker.idx);
#pragma unroll 1
    for (int unit = worker.idx; unit < count; unit += worker.count) {
      const bool is_row = is_wanted(part);
      if (is_row && !current.there && !poll_lines(call, part.source, [&] { return look(part, current); })) return;
      // The next one is on its way while this one is taken to its places.
      const Part next = part_of(unit + worker.count);
      Unit coming;
      const bool asks = unit + worker.count < count && is_wanted(next);
      if (asks) ask(next, coming);
      if (is_row) {
        open_header(current.head);
        take(part, current.data);
        __syncwarp();
        if constexpr (kHasExtras<Args>) {
          if (args.flags.number != nullptr) count_part(part);
        }
      }
      coming.there = asks && __all_sync(kFullWarp, is_there(next, coming)) != 0;
      current = coming;
      part = next;
    }
  }

 private:
  /// Which part of which row: the header (`chunk` -1), a chunk of the row, or of its scales; or what is kept of this
  /// rank's own tokens (the last).
  struct Part {
    int source;
    int idx;  ///< of the row among the source's
    int chunk;
  };
  /// The rows of this rank that a received row goes to: a lane for every top-k position.
  struct Places {
    std::int32_t row = -1;
    unsigned mask = 0;  ///< lanes that have one; their rows stand in scratch.rows, one behind the other
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

  /// There is such a row, and the part has something to do.
  [[nodiscard]] __device__ bool is_wanted(const Part& part) const {
    return part.idx < t.pair_begin[part.source + 1] - t.pair_begin[part.source] &&
           (part.chunk < args.lines.dispatch_parts - 2 || part.source == group().rank);
  }
  [[nodiscard]] __device__ bool in_header() const { return parts.line < args.lines.header_lines; }

  /// The lines of a part, in those of its row; none of a header, which every part has beside its own.
  struct PartLines {
    int first;
    int count;
  };
  [[nodiscard]] __device__ PartLines lines_of_part(const Part& part) const {
    const LinePlan& lines = args.lines;
    if (part.chunk < 0 || part.chunk == lines.dispatch_parts - 2) return {0, 0};
    // Chunks of scales, as those of rows, are kChunkLines at most.
    const bool in_row = part.chunk < lines.row_chunks;
    const int chunk = in_row ? part.chunk : part.chunk - lines.row_chunks;
    return {lines.header_lines + (in_row ? 0 : lines.row_lines) + chunk * kChunkLines,
            lines_in_chunk(in_row ? lines.row_lines : lines.scale_lines, chunk)};
  }
  /// Asks for a part and for the header of its row.
  __device__ void ask(const Part& part, Unit& unit) const {
    const std::byte* slot = group().section(group().rank, BufferSection::kDispatchLines) +
                            args.lines.slot_offset(call.epoch, part.source, part.idx);
    if (in_header()) unit.head = load_whole(slot + parts.at);
    const PartLines at = lines_of_part(part);
    unit.data.ask(parts, slot + at.first * kLineBytes, at.count);
  }
  /// True in a lane that misses nothing of what was asked for.
  [[nodiscard]] __device__ bool is_there(const Part& part, const Unit& unit) const {
    const uint2 flag = line_flag(call.epoch);
    const bool has_flag = in_header() && lane_id() % kLineLanes == kFlagLane;
    return unit.data.is_there(parts, lines_of_part(part).count, flag) &&
           (!has_flag || (unit.head.z == flag.x && unit.head.w == flag.y));
  }
  __device__ bool look(const Part& part, Unit& unit) const {
    ask(part, unit);
    return is_there(part, unit);
  }

  /// The words of a header, without the flags, to where all lanes can read them.
  __device__ void open_header(const uint4& head) const {
    const int line = lane_id() / kLineLanes;
    auto* words = scratch.header + line * static_cast<int>(kLinePayloadBytes / 4) + lane_id() % kLineLanes * 4;
    if (in_header()) {
      reinterpret_cast<uint2*>(words)[0] = make_uint2(head.x, head.y);
      if (lane_id() % kLineLanes != kFlagLane) reinterpret_cast<uint2*>(words)[1] = make_uint2(head.z, head.w);
    }
    __syncwarp();
  }

  /// For flags: the part is where it belongs, for every expert here that the row goes to.
  __device__ void count_part(const Part& part) const {
    if (part.chunk == args.lines.dispatch_parts - 2 || lane_id() >= routing().handle.top_k) return;
    const auto expert = static_cast<std::int32_t>(scratch.header[kHeaderStart + lane_id()]);
    if (expert >= 0) count_row_part(args, t, call.epoch, part.source, expert);
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
    } else if (part.chunk == lines.dispatch_parts - 2) {
      describe_own(part.idx, places);
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
    if (places.row >= 0) scratch.rows[__popc(places.mask & ((1U << lane_id()) - 1))] = places.row;
    __syncwarp();
    return places;
  }

  /// Calls store(row) for every row, four of which are known at once.
  template <typename Store>
  __device__ void for_each_row(const Places& places, const Store& store) const {
    constexpr int kAtOnce = 4;
    const int count = __popc(places.mask);
#pragma unroll 1
    for (int first = 0; first < count; first += kAtOnce) {
      const int4 rows = *reinterpret_cast<const int4*>(scratch.rows + first);
      const std::int32_t row[kAtOnce] = {rows.x, rows.y, rows.z, rows.w};
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (first + i < count) store(row[i]);
      }
    }
  }

  __device__ void store_row(const Places& places, const RowChunk& data, int chunk) const {
    std::byte* rows =
        group().section(group().rank, BufferSection::kReceiveRows, args.buffer) + chunk * RowChunk::kBytes;
    const std::int64_t row_bytes = args.lines.row_bytes;
    const int num_bytes = bytes_in_chunk<RowChunk>(row_bytes, chunk);
    if (row_bytes % kUnitBytes != 0) {
      for_each_row(places,
                   [&](std::int32_t row) { data.store(parts, rows + wide_product(row, row_bytes), num_bytes, false); });
      return;
    }
    for_each_row(places,
                 [&](std::int32_t row) { data.store(parts, rows + wide_product(row, row_bytes), num_bytes, true); });
  }
  __device__ void store_scales(const Places& places, const Chunk& data, int chunk) const {
    std::byte* scales = group().section(group().rank, BufferSection::kReceiveScales, args.buffer);
    const std::int64_t scale_bytes = args.lines.scale_bytes;
    const int num_bytes = bytes_in_chunk<Chunk>(scale_bytes, chunk);
    for_each_row(places, [&](std::int32_t row) {
      data.store(parts, scales + wide_product(row, scale_bytes) + chunk * Chunk::kBytes, num_bytes,
                 scale_bytes % kUnitBytes == 0);
    });
  }
  /// The scales of a chunk's blocks, each with the flag lane of a line: fp32 words, or exponent bytes; eight lanes for
  /// every row. The last chunk's warp also fills up the row of scales.
  __device__ void store_block_scales(const Places& places, const BlockChunk& data, int chunk) const {
    static_assert(BlockChunk::kVectors == 2 && kChunkLines == kLineLanes);
    const LinePlan& lines = args.lines;
    std::byte* scales = group().section(group().rank, BufferSection::kReceiveScales, args.buffer);
    const bool words = lines.scale_format == ScaleFormat::kFp32;
    const int num_scales = static_cast<int>(fp8::num_scales(lines.row_bytes));
    const int line = lane_id() % kLineLanes;
    const int flag_lane = line % kLinesAtOnce * kLineLanes + kFlagLane;
    const std::uint32_t low = __shfl_sync(kFullWarp, data.v[0].x, flag_lane);
    const std::uint32_t high = __shfl_sync(kFullWarp, data.v[1].x, flag_lane);
    const std::uint32_t value = line < kLinesAtOnce ? low : high;
    const int scale = chunk * kQuantisedBlocks + line;
    const bool has_scale = line < kQuantisedBlocks && scale < num_scales;
    const bool fills = !words && chunk == lines.row_chunks - 1;
    const int count = __popc(places.mask);
    if constexpr (kHasExtras<Args>) {
      if (args.scale_places.in_columns()) return store_scale_columns(count, has_scale, scale, value, fills);
    }
#pragma unroll 1
    for (int i = lane_id() / kLineLanes; i < count; i += kLinesAtOnce) {
      std::byte* row_scales = scales + wide_product(scratch.rows[i], lines.scale_bytes);
      if (has_scale && words) {
        reinterpret_cast<std::uint32_t*>(row_scales)[scale] = value;
      } else if (has_scale) {
        row_scales[scale] = static_cast<std::byte>(value);
      }
      if (!fills) continue;
      for (int fill = num_scales + line; fill < lines.scale_bytes; fill += kLineLanes) row_scales[fill] = std::byte{0};
    }
  }

  /// The same where words of scales lie in columns: scale `scale`, a word or a byte of one, of the rows of
  /// scratch.rows.
  __device__ void store_scale_columns(int count, bool has_scale, int scale, std::uint32_t value, bool fills) const {
    const ScalePlaces& at = args.scale_places;
    std::byte* scales = group().section(group().rank, BufferSection::kReceiveScales, args.buffer);
    const bool words = args.lines.scale_format == ScaleFormat::kFp32;
    const int num_scales = static_cast<int>(fp8::num_scales(args.lines.row_bytes));
    constexpr int kPerWord = 4;
#pragma unroll 1
    for (int i = lane_id() / kLineLanes; i < count; i += kLinesAtOnce) {
      const std::int32_t row = scratch.rows[i];
      if (has_scale && words) {
        *reinterpret_cast<std::uint32_t*>(scales + at.offset(row, scale)) = value;
      } else if (has_scale) {
        scales[at.offset(row, scale / kPerWord) + scale % kPerWord] = static_cast<std::byte>(value);
      }
      if (!fills) continue;
      for (int fill = num_scales + lane_id() % kLineLanes; fill < args.lines.scale_bytes; fill += kLineLanes) {
        scales[at.offset(row, fill / kPerWord) + fill % kPerWord] = std::byte{0};
      }
    }
  }

  /// What the handle knows of a received row. (Numbers of 32 bits: there are no more than 2^31 elements.)
  __device__ void describe(int source, int idx, const Places& places) const {
    const HandleArrays& handle = routing().handle;
    const int top_k = handle.top_k;
    const int lane = lane_id();
    const auto pair = static_cast<std::uint32_t>(t.pair_begin[source] + idx);
    const auto token = static_cast<std::int32_t>(scratch.header[0]);
    const bool is_position = lane < top_k;
    std::int32_t expert = -1;
    std::uint32_t weight = 0;
    if (is_position) {
      expert = static_cast<std::int32_t>(scratch.header[kHeaderStart + lane]);
      weight = scratch.header[kHeaderStart + 2 * top_k + lane];
    }
    if (layout().token_major()) {
      const std::uint32_t first = pair * static_cast<std::uint32_t>(top_k);
      if (is_position) {
        handle.local_expert_ids[first + lane] = expert;
        handle.row_weights[first + lane] = __uint_as_float(weight);
      }
      if (lane == 0) {
        handle.src_rank[pair] = source;
        handle.src_token[pair] = token;
      }
      return;
    }
    auto* record =
        reinterpret_cast<std::uint32_t*>(handle.pair_records + wide_product(pair, layout().pair_record_bytes()));
    if (is_position) {
      record[2 + lane] = static_cast<std::uint32_t>(places.row);
      record[2 + top_k + lane] = weight;
    }
    if (lane < 2) record[lane] = static_cast<std::uint32_t>(lane == 0 ? source : token);
    if (places.row >= 0) {
      const auto row = static_cast<std::uint32_t>(places.row);
      handle.src_rank[row] = source;
      handle.src_token[row] = token;
      handle.row_expert[row] = expert;
      handle.row_weights[row] = __uint_as_float(weight);
    }
  }

  /// This rank's own tokens: where combine finds their rows here.
  __device__ void describe_own(int idx, const Places& places) const {
    const HandleArrays& handle = routing().handle;
    const int top_k = handle.top_k;
    const int lane = lane_id();
    const std::int32_t pair = t.pair_begin[group().rank] + idx;
    const auto token = scratch.header[0];
    const TokenRanks ranks(t.routing, token, top_k, layout().params().order);
    const bool token_major = layout().token_major();
    if (ranks.rank == group().rank) {
      handle.dst_row[token * static_cast<unsigned>(top_k) + lane] = token_major ? pair : places.row;
    }
    const std::int32_t first_row =
        token_major ? pair : __shfl_sync(kFullWarp, places.row, __ffs(static_cast<int>(places.mask)) - 1);
    if (ranks.is_leader() && ranks.rank == group().rank) {
      SendPlace& send = handle.sends[token * static_cast<unsigned>(handle.sends_per_token) + ranks.slot];
      send.row = first_row;
      send.pair = pair;
    }
  }
};

/// Describes the padding of blocks, which stay where they are: only what was not padding after the last dispatch of the
/// handle. By a whole block.
__device__ inline void describe_block_padding(const PrepareArgs& args, const LineTables& t) {
  const auto capacity = static_cast<std::int32_t>(args.layout.params().capacity_rows);
  const int first_expert = t.all.first[args.group.rank];
#pragma unroll 1
  for (int first = 0; first < t.num_local; first += kLineThreads) {
    const int local = first + static_cast<int>(threadIdx.x);
    std::int32_t begin = 0;
    std::int32_t end = 0;
    if (local < t.num_local) {
      std::int32_t& clean_rows = args.handle.clean_rows[local];
      const std::int32_t before = clean_rows;
      const std::int32_t after = capacity - t.all.total[first_expert + local];
      clean_rows = after;
      begin = local * capacity + capacity - after;
      end = (local + 1) * capacity - before;
    }
#pragma unroll 1
    for (unsigned left = __ballot_sync(kFullWarp, begin < end); left != 0; left &= left - 1) {
      const int lane = __ffs(static_cast<int>(left)) - 1;
      describe_padding(args, __shfl_sync(kFullWarp, begin, lane), __shfl_sync(kFullWarp, end, lane), lane_id(),
                       kWarpSize);
    }
  }
}

/// Rows of the output that nothing has come for: described as padding (those of blocks: see above), and zeroed where
/// the caller asks for it.
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
    if (args.zero_padding) zero_groups();
    if (layout().params().layout == OutputLayout::kExpertBlocks) return;
#pragma unroll 1
    for (int first = worker.idx * kWarpSize; first < t.num_local; first += worker.count * kWarpSize) {
      describe_groups(first);
    }
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
    const int local = first_local + lane_id();
    const std::int32_t begin = local < t.num_local ? content_end(local) : 0;
    const std::int32_t end = local < t.num_local ? group_end(local) : 0;
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
