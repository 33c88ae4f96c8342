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

  /// All rows that this rank receives, its own among them; one warp among others. Sources take turns.
  __device__ void run(const Worker& worker) const {
    const int ranks = group().num_ranks;
    const int parts = args.lines.dispatch_parts();
    int longest = 0;
    for (int s = 0; s < ranks; ++s) longest = max(longest, t.pair_begin[s + 1] - t.pair_begin[s]);
    const int count = longest * ranks * parts;
#pragma unroll 1
    for (int unit = worker.idx; unit < count; unit += worker.count) {
      const auto row = static_cast<int>(static_cast<unsigned>(unit) / static_cast<unsigned>(parts));
      const auto idx = static_cast<int>(static_cast<unsigned>(row) / static_cast<unsigned>(ranks));
      int source = group().rank + row - idx * ranks;
      if (source >= ranks) source -= ranks;
      if (idx >= t.pair_begin[source + 1] - t.pair_begin[source]) continue;
      if (!receive(source, idx, unit - row * parts - 1)) return;
    }
  }

 private:
  /// The rows of this rank that a received row goes to: a lane for every top-k position.
  struct Places {
    std::int32_t row = -1;
    unsigned mask = 0;  ///< lanes that have one
  };

  /// One part of a row: the header (`chunk` -1), a chunk of the row, or of its scales.
  __device__ bool receive(int source, int idx, int chunk) const {
    const LinePlan& lines = args.lines;
    const std::byte* slot =
        group().section(group().rank, BufferSection::kDispatchLines) + lines.slot_offset(call.epoch, source, idx);
    const std::byte* row_lines = slot + lines.header_lines * kLineBytes;
    if (chunk < 0) {
      if (!await_lines(source, slot, [](uint2) { return true; })) return false;
      describe(source, idx, places_of(source, idx));
    } else if (chunk < lines.row_chunks()) {
      RowChunk data;
      const std::byte* from = row_lines + chunk * kChunkLines * kLineBytes;
      const int num_lines = lines_in_chunk(lines.row_lines, chunk);
      if (!await_lines(source, slot, [&](uint2 flag) { return data.look(from, num_lines, flag); })) return false;
      const Places places = places_of(source, idx);
      store_row(places, data, chunk);
      if constexpr (kQuantises) store_block_scales(places, data, chunk);
    } else {
      Chunk data;
      const int in_scales = chunk - lines.row_chunks();
      const std::byte* from = row_lines + (lines.row_lines + in_scales * kChunkLines) * kLineBytes;
      const int num_lines = lines_in_chunk(lines.scale_lines, in_scales);
      if (!await_lines(source, slot, [&](uint2 flag) { return data.look(from, num_lines, flag); })) return false;
      store_scales(places_of(source, idx), data, in_scales);
    }
    __syncwarp();
    return true;
  }

  /// Waits for the header, which it opens, and for what `look(flag)` looks at.
  template <typename Look>
  __device__ bool await_lines(int source, const std::byte* slot, const Look& look) const {
    const uint2 flag = line_flag(call.epoch);
    const bool has_header = lane_id() / kLineLanes < args.lines.header_lines;
    const bool has_flag = has_header && lane_id() % kLineLanes == kFlagLane;
    uint4 head = make_uint4(0, 0, 0, 0);
    const bool there = poll_lines(call, source, [&] {
      if (has_header) head = load_line_vector(slot + lane_id() * kUnitBytes);
      const bool rest = look(flag);
      return rest && (!has_flag || (head.z == flag.x && head.w == flag.y));
    });
    if (there) open_header(head, has_header, has_flag);
    return there;
  }

  __device__ void open_header(const uint4& head, bool has_header, bool is_flag_lane) const {
    const int line = lane_id() / kLineLanes;
    auto* words = scratch.header + line * static_cast<int>(kLinePayloadBytes / 4) + lane_id() % kLineLanes * 4;
    if (has_header) {
      reinterpret_cast<uint2*>(words)[0] = make_uint2(head.x, head.y);
      if (!is_flag_lane) reinterpret_cast<uint2*>(words)[1] = make_uint2(head.z, head.w);
    }
    __syncwarp();
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
      store(std::int64_t{__shfl_sync(kFullWarp, places.row, __ffs(static_cast<int>(left)) - 1)});
    }
  }

  __device__ void store_row(const Places& places, const RowChunk& data, int chunk) const {
    std::byte* rows = group().section(group().rank, BufferSection::kReceiveRows, args.buffer);
    const int num_bytes = bytes_in_chunk<RowChunk>(args.lines.row_bytes, chunk);
    const bool aligned = args.lines.row_bytes % kUnitBytes == 0;
    for_each_row(places, [&](std::int64_t row) {
      data.store(rows + row * args.lines.row_bytes + std::int64_t{chunk} * RowChunk::kBytes, num_bytes, aligned);
    });
  }
  __device__ void store_scales(const Places& places, const Chunk& data, int chunk) const {
    std::byte* scales = group().section(group().rank, BufferSection::kReceiveScales, args.buffer);
    const std::int64_t scale_bytes = args.lines.scale_bytes;
    const int num_bytes = bytes_in_chunk<Chunk>(scale_bytes, chunk);
    for_each_row(places, [&](std::int64_t row) {
      data.store(scales + row * scale_bytes + std::int64_t{chunk} * Chunk::kBytes, num_bytes,
                 scale_bytes % kUnitBytes == 0);
    });
  }
  /// The scales of a chunk's blocks, each with the flag lane of a line: fp32 words, or exponent bytes. The last chunk's
  /// warp also fills up the row of scales.
  __device__ void store_block_scales(const Places& places, const BlockChunk& data, int chunk) const {
    const LinePlan& lines = args.lines;
    const ScalePlaces at = layout().scale_places(t.all.out_rows[group().rank]);
    std::byte* scales = group().section(group().rank, BufferSection::kReceiveScales, args.buffer);
    const bool words = lines.scale_format == ScaleFormat::kFp32;
    const int num_scales = static_cast<int>(fp8::num_scales(lines.row_bytes));
    const bool fills = !words && chunk == lines.row_chunks() - 1;
    const int fill = num_scales + lane_id();
    for_each_row(places, [&](std::int64_t row) {
#pragma unroll
      for (int i = 0; i < BlockChunk::kVectors; ++i) {
        const BlockChunk::Part part(i);
        const int scale = chunk * kQuantisedBlocks + part.line;
        if (!part.has_flag || part.line >= kQuantisedBlocks || scale >= num_scales) continue;
        if (words) {
          *reinterpret_cast<std::uint32_t*>(scales + at.offset(row, scale)) = data.v[i].x;
        } else {
          scales[at.offset(row, scale / 4) + scale % 4] = static_cast<std::byte>(data.v[i].x);
        }
      }
      if (fills && fill < lines.scale_bytes) {
        scales[at.offset(row, fill / 4) + fill % 4] = std::byte{0};
      }
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
  __device__ __noinline__ void describe(std::int64_t begin, std::int64_t end, int first, int step) const {
    describe_padding(args.routing, begin, end, first, step);
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
  __device__ __noinline__ void zero(std::int32_t begin, std::int32_t end) const {
    if (!args.zero_padding) return;
    const std::int64_t row_bytes = layout().params().row_bytes;
    const std::int64_t scale_bytes = layout().params().scale_bytes;
    std::byte* rows = group().section(group().rank, BufferSection::kReceiveRows, args.buffer);
    std::byte* scales = group().section(group().rank, BufferSection::kReceiveScales, args.buffer);
    const ScalePlaces at = layout().scale_places(t.all.out_rows[group().rank]);
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
