#include "dispatch/host/alltoall/alltoall.hpp"

#include <algorithm>
#include <cstring>

#include "dispatch/host/engine/sums.hpp"
#include "dispatch/host/engine/wire_rows.hpp"

namespace epistle::host {

// ---- Where rows lie in the packed buffers ---------------------------------------------------------------------------
// A send buffer holds the columns (destination ranks, or experts) in ascending order, in each the rows by token. What a
// rank receives of one source it keeps together, sources in ascending order.

AllToAllMover::Segment AllToAllMover::packed_segment(const HostHandle& handle, int src, int dst) const {
  const ExpertPartition partition = context_.layout().partition();
  const int first = context_.layout().token_major() ? dst : partition.first_expert(dst);
  const int num_columns = context_.layout().token_major() ? 1 : partition.num_local_experts(dst);
  Segment segment;
  for (int column = 0; column < first; ++column) segment.begin += handle.tables.num_kept(src, column);
  for (int column = first; column < first + num_columns; ++column) {
    segment.num_rows += handle.tables.num_kept(src, column);
  }
  return segment;
}

std::int64_t AllToAllMover::pairs_before(const HostHandle& handle, int src, int dst) const {
  std::int64_t num_pairs = 0;
  for (int before = 0; before < src; ++before) num_pairs += handle.num_pairs(before, dst);
  return num_pairs;
}

void AllToAllMover::compute_packed_begins(const HostHandle& handle) {
  packed_begin_.resize(static_cast<std::size_t>(handle.tables.num_columns()));
  std::int64_t begin = 0;
  for (int column = 0; column < handle.tables.num_columns(); ++column) {
    packed_begin_[static_cast<std::size_t>(column)] = begin;
    begin += handle.tables.num_kept(context_.rank, column);
  }
}

void AllToAllMover::reserve(HostHandle& handle) {
  packed_begin_.reserve(static_cast<std::size_t>(handle.tables.num_columns()));
  if (!sends_partial_sums()) return;
  pair_begin_.reserve(static_cast<std::size_t>(context_.num_ranks));
  handle.pair_of_send.reserve(static_cast<std::size_t>(handle.demand.send_pairs));
  handle.pair_rows.reserve(static_cast<std::size_t>(handle.demand.receive_pairs));
}

void AllToAllMover::plan(HostHandle& handle) {
  if (!sends_partial_sums()) return;
  pair_begin_.assign(static_cast<std::size_t>(context_.num_ranks), 0);
  handle.pair_of_send.resize(handle.sends.size());
  for (std::size_t idx = 0; idx < handle.sends.size(); ++idx) {
    handle.pair_of_send[idx] = pair_begin_[static_cast<std::size_t>(handle.sends[idx].dst_rank)]++;
  }
  handle.pair_rows.clear();
  for (std::size_t row = 0; row < handle.records.size(); ++row) {
    if (handle.records[row].primary_row == static_cast<std::int32_t>(row)) {
      handle.pair_rows.push_back(static_cast<std::int32_t>(row));
    }
  }
  std::sort(handle.pair_rows.begin(), handle.pair_rows.end(), [&](std::int32_t a, std::int32_t b) {
    const RowRecord& left = handle.records[static_cast<std::size_t>(a)];
    const RowRecord& right = handle.records[static_cast<std::size_t>(b)];
    return left.src_rank != right.src_rank ? left.src_rank < right.src_rank : left.src_token < right.src_token;
  });
}

// ---- Dispatch -------------------------------------------------------------------------------------------------------

void AllToAllMover::send_rows(const MoveJob& job) {
  const HostHandle& handle = *job.handle;
  compute_packed_begins(handle);
  const StoreMode mode = context_.store_mode(handle.demand.send_rows * job.row_bytes);
  std::byte* const rows = context_.own_section(BufferSection::kSendRows);
  std::byte* const scales = context_.own_section(BufferSection::kSendScales);
  const WireRows wire_rows(context_, job);
  const auto pack = [&](const WireRow& sent, std::int32_t column, std::int32_t row) {
    const std::int64_t packed =
        packed_begin_[static_cast<std::size_t>(column)] + row - handle.tables.row_begin(context_.rank, column);
    copy_row(sent.row, rows + packed * job.row_bytes, static_cast<std::size_t>(job.row_bytes), mode);
    if (job.scale_bytes == 0) return;
    std::memcpy(scales + packed * job.scale_bytes, sent.scales, static_cast<std::size_t>(job.scale_bytes));
  };
  const auto top_k = static_cast<std::size_t>(context_.config.top_k);
  context_.pool.parallel_for(handle.num_tokens, [&](std::int64_t begin, std::int64_t end) {
    for (auto token = static_cast<std::size_t>(begin); token < static_cast<std::size_t>(end); ++token) {
      const auto first = static_cast<std::size_t>(handle.send_begin[token]);
      const auto last = static_cast<std::size_t>(handle.send_begin[token + 1]);
      if (first == last) continue;
      const WireRow sent = wire_rows.at(static_cast<std::int64_t>(token));
      if (context_.layout().token_major()) {
        for (std::size_t idx = first; idx < last; ++idx) pack(sent, handle.sends[idx].dst_rank, handle.sends[idx].row);
        continue;
      }
      for (std::size_t entry = token * top_k; entry < (token + 1) * top_k; ++entry) {
        if (handle.dst_row[entry] >= 0) pack(sent, handle.expert_ids[entry], handle.dst_row[entry]);
      }
    }
    store_fence();
  });
}

void AllToAllMover::receive_rows(const MoveJob& job) {
  const HostHandle& handle = *job.handle;
  if (context_.layout().token_major()) {
    // Sources in ascending order, each by token: already the output's order.
    pull(handle, BufferSection::kSendRows, job.target, job.row_bytes);
  } else {
    pull(handle, BufferSection::kSendRows, BufferSection::kStageRows, job.row_bytes);
    copy_chunks(ChunkOrder::kByExpert, context_.own_section(BufferSection::kStageRows),
                context_.own_section(job.target), handle, job.row_bytes);
  }
  if (job.scale_bytes > 0) receive_scales(handle, job.scale_bytes);
}

/// The all-to-all-v: this rank's segment of every send buffer, sources one behind the other.
void AllToAllMover::pull(const HostHandle& handle, BufferSection from, BufferSection to, std::int64_t row_bytes) {
  const StoreMode mode = context_.store_mode(handle.demand.receive_rows * row_bytes);
  std::int64_t received = 0;
  for (int src = 0; src < context_.num_ranks; ++src) {
    const Segment segment = packed_segment(handle, src, context_.rank);
    context_.copy_block({.source = context_.section(src, from) + segment.begin * row_bytes,
                         .target = context_.own_section(to) + received * row_bytes,
                         .num_rows = segment.num_rows,
                         .row_bytes = row_bytes,
                         .mode = mode});
    received += segment.num_rows;
  }
}

namespace {

/// Calls `visit(staged_begin, output_begin, num_rows)` for the runs of rows that stay together between the received
/// order (by source, expert) and the output (by expert, source).
template <typename Visit>
void for_each_chunk(const DispatchLayout& layout, const HostHandle& handle, int rank, const Visit& visit) {
  const int first_expert = layout.partition().first_expert(rank);
  const int num_local = layout.partition().num_local_experts(rank);
  std::int64_t staged = 0;
  for (int src = 0; src < layout.params().num_ranks; ++src) {
    for (int expert = first_expert; expert < first_expert + num_local; ++expert) {
      const std::int64_t num_rows = handle.tables.num_kept(src, expert);
      visit(staged, std::int64_t{handle.tables.row_begin(src, expert)}, num_rows);
      staged += num_rows;
    }
  }
}

}  // namespace

void AllToAllMover::copy_chunks(ChunkOrder to, const std::byte* source, std::byte* target, const HostHandle& handle,
                                std::int64_t row_bytes) {
  const StoreMode mode = context_.store_mode(handle.demand.receive_rows * row_bytes);
  for_each_chunk(context_.layout(), handle, context_.rank,
                 [&](std::int64_t staged, std::int64_t output, std::int64_t num_rows) {
                   const bool sorts = to == ChunkOrder::kByExpert;
                   context_.copy_block({.source = source + (sorts ? staged : output) * row_bytes,
                                        .target = target + (sorts ? output : staged) * row_bytes,
                                        .num_rows = num_rows,
                                        .row_bytes = row_bytes,
                                        .mode = mode});
                 });
}

void AllToAllMover::receive_scales(const HostHandle& handle, std::int64_t scale_bytes) {
  const ReceivedScales scales = context_.received_scales(context_.rank, handle);
  const auto put = [&](const std::byte* source, std::int64_t first_row, std::int64_t num_rows) {
    context_.pool.parallel_for(num_rows, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t idx = begin; idx < end; ++idx) scales.put(first_row + idx, source + idx * scale_bytes);
    });
  };
  if (context_.layout().token_major()) {
    std::int64_t received = 0;
    for (int src = 0; src < context_.num_ranks; ++src) {
      const Segment segment = packed_segment(handle, src, context_.rank);
      put(context_.section(src, BufferSection::kSendScales) + segment.begin * scale_bytes, received, segment.num_rows);
      received += segment.num_rows;
    }
    return;
  }
  pull(handle, BufferSection::kSendScales, BufferSection::kStageScales, scale_bytes);
  const std::byte* const staged_scales = context_.own_section(BufferSection::kStageScales);
  for_each_chunk(context_.layout(), handle, context_.rank,
                 [&](std::int64_t staged, std::int64_t output, std::int64_t num_rows) {
                   put(staged_scales + staged * scale_bytes, output, num_rows);
                 });
}

// ---- Combine --------------------------------------------------------------------------------------------------------

void AllToAllMover::send_sums(const SumRequest& request) {
  if (context_.layout().token_major()) return;  // the combine rows are in the order in which they are sent
  if (sends_partial_sums()) {
    sum_pairs(request);
  } else {
    copy_chunks(ChunkOrder::kBySource, context_.own_section(BufferSection::kCombineRows),
                context_.own_section(BufferSection::kSendRows), *request.handle,
                context_.layout().params().combine_row_bytes);
  }
}

/// One rounded sum per (token, rank) pair, by source and token.
void AllToAllMover::sum_pairs(const SumRequest& request) {
  const HostHandle& handle = *request.handle;
  const std::int64_t row_bytes = context_.layout().params().combine_row_bytes;
  const std::byte* rows = context_.own_section(BufferSection::kCombineRows);
  std::byte* sums = context_.own_section(BufferSection::kSendRows);
  const auto num_pairs = static_cast<std::int64_t>(handle.pair_rows.size());
  const StoreMode mode = context_.store_mode(num_pairs * row_bytes);
  context_.pool.parallel_for(num_pairs, [&](std::int64_t begin, std::int64_t end) {
    thread_local std::vector<SumTerm> terms;
    for (std::int64_t pair = begin; pair < end; ++pair) {
      terms.clear();
      for (std::int32_t row = handle.pair_rows[static_cast<std::size_t>(pair)]; row >= 0;
           row = handle.records[static_cast<std::size_t>(row)].next_row) {
        terms.push_back({.row = rows + row * row_bytes, .weight = handle.row_weights[static_cast<std::size_t>(row)]});
      }
      sum_rows({.terms = terms,
                .group_ends = {},
                .weighted = request.weighted,
                .dtype = context_.config.combine_dtype,
                .out = sums + pair * row_bytes,
                .num_bytes = static_cast<std::size_t>(row_bytes),
                .mode = mode});
    }
    store_fence();
  });
}

/// The all-to-all-v of combine: what every rank has for this one, ranks one behind the other.
void AllToAllMover::pull_back(const HostHandle& handle, std::int64_t row_bytes) {
  const StoreMode mode = context_.store_mode(handle.demand.send_rows * row_bytes);
  std::int64_t received = 0;
  for (int dst = 0; dst < context_.num_ranks; ++dst) {
    std::int64_t num_rows = packed_segment(handle, context_.rank, dst).num_rows;
    std::int64_t first = 0;
    BufferSection from = BufferSection::kSendRows;
    if (context_.layout().token_major()) {
      from = BufferSection::kCombineRows;
      first = handle.tables.row_begin(context_.rank, dst);
    } else if (sends_partial_sums()) {
      num_rows = handle.num_pairs(context_.rank, dst);
      first = pairs_before(handle, context_.rank, dst);
    } else {
      for (int src = 0; src < context_.rank; ++src) first += packed_segment(handle, src, dst).num_rows;
    }
    context_.copy_block({.source = context_.section(dst, from) + first * row_bytes,
                         .target = context_.own_section(BufferSection::kStageRows) + received * row_bytes,
                         .num_rows = num_rows,
                         .row_bytes = row_bytes,
                         .mode = mode});
    received += num_rows;
  }
}

void AllToAllMover::receive_sums(const SumRequest& request) {
  const HostHandle& handle = *request.handle;
  const std::int64_t row_bytes = context_.layout().params().combine_row_bytes;
  pull_back(handle, row_bytes);
  const std::byte* staged = context_.own_section(BufferSection::kStageRows);
  compute_packed_begins(handle);
  const auto packed_row = [&](std::int32_t column, std::int32_t row) {
    return packed_begin_[static_cast<std::size_t>(column)] + row - handle.tables.row_begin(context_.rank, column);
  };
  if (context_.layout().token_major()) {
    sum_token_rows(context_, request, [&](std::size_t idx) {
      const SendEntry& send = handle.sends[idx];
      return staged + packed_row(send.dst_rank, send.row) * row_bytes;
    });
  } else if (sends_partial_sums()) {
    std::int32_t begin = 0;
    for (int dst = 0; dst < context_.num_ranks; ++dst) {
      pair_begin_[static_cast<std::size_t>(dst)] = begin;
      begin += handle.num_pairs(context_.rank, dst);
    }
    // The weights are in the partial sums already.
    const SumRequest unweighted{
        .handle = request.handle, .weighted = false, .out = request.out, .out_stride = request.out_stride};
    sum_token_rows(context_, unweighted, [&](std::size_t idx) {
      const auto dst = static_cast<std::size_t>(handle.sends[idx].dst_rank);
      return staged + (pair_begin_[dst] + handle.pair_of_send[idx]) * row_bytes;
    });
  } else {
    sum_expert_rows(context_, request, [&](std::size_t entry) {
      return staged + packed_row(handle.expert_ids[entry], handle.dst_row[entry]) * row_bytes;
    });
  }
}

void AllToAllMover::apply_row_weights(const RowWeightJob& job) { host::apply_row_weights(context_, job); }

}  // namespace epistle::host
