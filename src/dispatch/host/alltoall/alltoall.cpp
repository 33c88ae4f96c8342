#include "dispatch/host/alltoall/alltoall.hpp"

#include <algorithm>
#include <cstring>

#include "dispatch/host/alltoall/row_runs.hpp"
#include "dispatch/host/engine/owed_rows.hpp"
#include "dispatch/host/engine/sums.hpp"
#include "dispatch/host/engine/wire_rows.hpp"

namespace epistle::host {

AllToAllMover::AllToAllMover(HostContext& context) : context_(context) {
  if (context.plan.uses_links()) linked_.emplace(context);
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

void AllToAllMover::exchange_records(HostHandle& handle) {
  compute_packed_begins(handle);
  linked_->exchange_records(handle, packed_begin_);
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
    const std::int64_t packed = packed_row(handle, column, row);
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
  if (!linked_) return;
  const PackedRows packed_rows(context_.layout(), handle);
  const LinkedExchange::RouteTo route_to = [&](int dst) {
    return LinkedExchange::Route{.rows = packed_rows.sent(context_.rank, dst),
                                 .target_begin = packed_rows.received_begin(context_.rank, dst)};
  };
  linked_->put({.row_bytes = job.row_bytes}, route_to);
  if (job.scale_bytes > 0) {
    linked_->put({.from = BufferSection::kSendScales, .to = BufferSection::kStageScales, .row_bytes = job.scale_bytes},
                 route_to);
  }
  linked_->tell(route_to);
}

void AllToAllMover::receive_rows(const MoveJob& job) {
  const HostHandle& handle = *job.handle;
  const PackedRows rows(context_.layout(), handle);
  const SegmentFrom from_peer = [&](int src) { return rows.sent(src, context_.rank); };
  // Sources in ascending order, each by token: of token rows that is the output's order.
  const bool goes_to_output = context_.layout().token_major() && !linked_;
  if (linked_) {
    linked_->wait(from_peer, job.phase, rows_to(&handle, context_.rank));
  } else {
    pull({BufferSection::kSendRows, goes_to_output ? job.target : BufferSection::kStageRows, job.row_bytes}, from_peer,
         handle.demand.receive_rows);
  }
  if (!goes_to_output) {
    copy_runs(RunOrder::kAsOutput, context_.own_section(BufferSection::kStageRows), context_.own_section(job.target),
              handle, job.row_bytes);
  }
  if (job.scale_bytes > 0) receive_scales(handle, job.scale_bytes);
}

/// The all-to-all-v: this rank's segment of every buffer, ranks one behind the other.
void AllToAllMover::pull(const LinkedExchange::Part& part, const SegmentFrom& segment_from,
                         std::int64_t num_rows_of_all) {
  const StoreMode mode = context_.store_mode(num_rows_of_all * part.row_bytes);
  std::int64_t received = 0;
  for (int peer = 0; peer < context_.num_ranks; ++peer) {
    const Segment segment = segment_from(peer);
    context_.copy_block({.source = context_.section(peer, part.from) + segment.begin * part.row_bytes,
                         .target = context_.own_section(part.to) + received * part.row_bytes,
                         .num_rows = segment.num_rows,
                         .row_bytes = part.row_bytes,
                         .mode = mode});
    received += segment.num_rows;
  }
}

void AllToAllMover::copy_runs(RunOrder to, const std::byte* source, std::byte* target, const HostHandle& handle,
                              std::int64_t row_bytes) {
  const StoreMode mode = context_.store_mode(handle.demand.receive_rows * row_bytes);
  for_each_run(context_.layout(), handle, context_.rank, [&](const RowRun& run) {
    const bool sorts = to == RunOrder::kAsOutput;
    context_.copy_block({.source = source + (sorts ? run.received_begin : run.output_begin) * row_bytes,
                         .target = target + (sorts ? run.output_begin : run.received_begin) * row_bytes,
                         .num_rows = run.num_rows,
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
  const PackedRows rows(context_.layout(), handle);
  if (context_.layout().token_major() && !linked_) {
    std::int64_t received = 0;
    for (int src = 0; src < context_.num_ranks; ++src) {
      const Segment segment = rows.sent(src, context_.rank);
      put(context_.section(src, BufferSection::kSendScales) + segment.begin * scale_bytes, received, segment.num_rows);
      received += segment.num_rows;
    }
    return;
  }
  if (!linked_) {
    pull(
        {BufferSection::kSendScales, BufferSection::kStageScales, scale_bytes},
        [&](int src) { return rows.sent(src, context_.rank); }, handle.demand.receive_rows);
  }
  const std::byte* const staged_scales = context_.own_section(BufferSection::kStageScales);
  for_each_run(context_.layout(), handle, context_.rank, [&](const RowRun& run) {
    put(staged_scales + run.received_begin * scale_bytes, run.output_begin, run.num_rows);
  });
}

// ---- Combine --------------------------------------------------------------------------------------------------------

void AllToAllMover::send_sums(const SumRequest& request) {
  const HostHandle& handle = *request.handle;
  const std::int64_t row_bytes = context_.layout().params().combine_row_bytes;
  // Token rows are in the order in which they are sent.
  const bool is_packed = context_.layout().token_major();
  if (sends_partial_sums()) {
    sum_pairs(request);
  } else if (!is_packed) {
    copy_runs(RunOrder::kAsReceived, context_.own_section(BufferSection::kCombineRows),
              context_.own_section(BufferSection::kSendRows), handle, row_bytes);
  }
  if (!linked_) return;
  const PackedRows rows(context_.layout(), handle);
  const LinkedExchange::RouteTo rows_to = [&](int src) {
    return LinkedExchange::Route{.rows = rows.returned(src, context_.rank),
                                 .target_begin = rows.brought_begin(src, context_.rank)};
  };
  const LinkedExchange::RouteTo sums_to = [&](int src) {
    return LinkedExchange::Route{.rows = rows.returned_sums(src, context_.rank),
                                 .target_begin = rows.brought_sums_begin(src, context_.rank)};
  };
  linked_->put({.from = returned_section(), .row_bytes = row_bytes}, sends_partial_sums() ? sums_to : rows_to);
  if (request.brings_gradients) send_gradients(handle, rows_to);
  linked_->tell(rows_to);
}

/// Gradients of the weights, of every row.
void AllToAllMover::send_gradients(const HostHandle& handle, const LinkedExchange::RouteTo& rows_to) {
  const bool is_packed = context_.layout().token_major();
  const std::int64_t row_bytes = gradient_bytes();
  if (!is_packed) {
    copy_runs(RunOrder::kAsReceived, context_.own_section(BufferSection::kGradWeights),
              context_.own_section(BufferSection::kSendScales), handle, row_bytes);
  }
  linked_->put({.from = is_packed ? BufferSection::kGradWeights : BufferSection::kSendScales,
                .to = BufferSection::kStageScales,
                .row_bytes = row_bytes},
               rows_to);
}

void AllToAllMover::place_gradients(const SumRequest& request) const {
  const HostHandle& handle = *request.handle;
  const auto top_k = static_cast<std::size_t>(context_.config.top_k);
  const auto per_row = context_.layout().weights_per_row();
  const auto* const staged = reinterpret_cast<const float*>(context_.own_section(BufferSection::kStageScales));
  for (std::size_t entry = 0; entry < handle.dst_row.size(); ++entry) {
    request.grad_probs[entry] = 0.0F;
    if (handle.dst_row[entry] < 0) continue;
    const bool token_major = context_.layout().token_major();
    const std::int32_t column = token_major ? context_.rank_of_entry(handle, entry) : handle.expert_ids[entry];
    const auto within_row = static_cast<std::int64_t>(token_major ? entry % top_k : 0);
    request.grad_probs[entry] = staged[packed_row(handle, column, handle.dst_row[entry]) * per_row + within_row];
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

void AllToAllMover::bring_back(const HostHandle& handle, std::int64_t row_bytes) {
  const PackedRows rows(context_.layout(), handle);
  if (linked_) {
    linked_->wait([&](int dst) { return rows.returned(context_.rank, dst); }, Phase::kCombine,
                  rows_back_to(&handle, context_.rank));
    return;
  }
  pull(
      {returned_section(), BufferSection::kStageRows, row_bytes},
      [&](int dst) {
        return sends_partial_sums() ? rows.returned_sums(context_.rank, dst) : rows.returned(context_.rank, dst);
      },
      handle.demand.send_rows);
}

void AllToAllMover::receive_sums(const SumRequest& request) {
  const HostHandle& handle = *request.handle;
  const std::int64_t row_bytes = context_.layout().params().combine_row_bytes;
  bring_back(handle, row_bytes);
  const std::byte* staged = context_.own_section(BufferSection::kStageRows);
  compute_packed_begins(handle);
  if (context_.layout().token_major()) {
    sum_token_rows(context_, request, [&](std::size_t idx) {
      const SendEntry& send = handle.sends[idx];
      return staged + packed_row(handle, send.dst_rank, send.row) * row_bytes;
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
      return staged + packed_row(handle, handle.expert_ids[entry], handle.dst_row[entry]) * row_bytes;
    });
  }
  if (linked_ && request.grad_probs != nullptr) place_gradients(request);
}

void AllToAllMover::apply_row_weights(const RowWeightJob& job) { host::apply_row_weights(context_, job); }

}  // namespace epistle::host
