#include "dispatch/host/engine/received_rows.hpp"

#include <algorithm>
#include <cstring>

namespace epistle::host {

void ReceivedRows::open(HostHandle& state, const PlacedExperts& placed, std::span<const std::int32_t> sent) const {
  const auto num_rows = static_cast<std::size_t>(state.tables.output_rows(rank()));
  const ExpertPartition partition = layout_.partition();
  const bool is_trivial = placed.is_trivial();
  const auto num_local = static_cast<std::size_t>(
      is_trivial ? partition.num_local_experts(rank()) : placed.slots_of_rank()[static_cast<std::size_t>(rank())]);
  state.pairs.assign(state.num_ranks * state.num_ranks, 0);
  for (int peer = 0; peer < num_ranks(); ++peer) {
    state.set_num_pairs(rank(), peer, sent[static_cast<std::size_t>(peer)]);
  }
  state.expert_counts.assign(num_local, 0);
  state.expert_dropped.assign(num_local, 0);
  state.src_rank.assign(num_rows, -1);
  state.src_token.assign(num_rows, -1);
  state.row_weights.assign(num_rows * static_cast<std::size_t>(layout_.weights_per_row()), 0.0F);
  state.description = RowDescription{.num_rows = static_cast<std::int64_t>(num_rows),
                                     .src_rank = state.src_rank.data(),
                                     .src_token = state.src_token.data(),
                                     .weights = state.row_weights.data(),
                                     .num_local_experts = static_cast<std::int32_t>(num_local),
                                     .first_expert = is_trivial ? partition.first_expert(rank()) : kNoExpert,
                                     .placement_generation = placed.generation(),
                                     .expert_counts = state.expert_counts.data(),
                                     .expert_dropped = state.expert_dropped.data()};
  if (layout_.token_major()) {
    state.local_experts.assign(num_rows * static_cast<std::size_t>(context_->config.top_k), kNoExpert);
    state.description.local_experts = state.local_experts.data();
    return;
  }
  state.records.assign(num_rows, RowRecord{});
  state.row_expert.assign(num_rows, kNoExpert);
  state.description.row_expert = state.row_expert.data();
  // Groups beyond the capacity are empty; the tables' begins are those of an unlimited output.
  state.expert_begin.resize(num_local + 1);
  for (std::size_t local = 0; local < num_local; ++local) {
    const auto expert = partition.first_expert(rank()) + static_cast<std::int32_t>(local);
    state.expert_begin[local] =
        static_cast<std::int32_t>(std::min(state.tables.group_begin(expert), state.description.num_rows));
  }
  state.description.expert_begin = state.expert_begin.data();
}

void ReceivedRows::read_counts(HostHandle& state, std::span<const ConstCountsView> all_counts, bool has_drops) const {
  const auto ranks = static_cast<std::size_t>(num_ranks());
  const auto first_expert = static_cast<std::size_t>(layout_.partition().first_expert(rank()));
  for (std::size_t peer = 0; peer < ranks; ++peer) {
    const ConstCountsView& counts = all_counts[peer];
    const auto& pairs = has_drops ? counts.pairs_to_rank : counts.tokens_to_rank;
    std::copy(pairs.begin(), pairs.end(), state.pairs.begin() + static_cast<std::ptrdiff_t>(peer * ranks));
    for (std::size_t local = 0; local < state.expert_counts.size(); ++local) {
      state.expert_counts[local] += counts.rows_to_expert[first_expert + local];
    }
    if (!has_drops) continue;
    for (std::size_t local = 0; local < state.expert_counts.size(); ++local) {
      const std::int32_t dropped = counts.dropped_of_expert[first_expert + local];
      state.expert_dropped[local] += dropped;
      state.expert_counts[local] -= dropped;
    }
    for (const std::int32_t dropped : counts.dropped_of_expert) state.stats.dropped_in_group += dropped;
  }
}

void ReceivedRows::sum_counts(HostHandle& state) const {
  RoutingStats& stats = state.stats;
  for (int peer = 0; peer < num_ranks(); ++peer) {
    const std::int32_t sent = state.num_pairs(rank(), peer);
    const std::int32_t received = state.num_pairs(peer, rank());
    stats.sent_rows += sent;
    stats.received_rows += received;
    if (peer == rank()) continue;
    stats.sent_remote_rows += sent;
    stats.received_remote_rows += received;
  }
  stats.output_rows = state.tables.content_rows(rank());
  stats.padding_rows = state.tables.output_rows(rank()) - stats.output_rows;
  for (const std::int32_t dropped : state.expert_dropped) stats.dropped_here += dropped;
  if (layout_.token_major()) return;
  const std::size_t num_local = state.expert_counts.size();
  const std::int64_t last_end =
      num_local == 0 ? 0 : state.expert_begin[num_local - 1] + layout_.group_rows(state.expert_counts[num_local - 1]);
  state.expert_begin[num_local] = static_cast<std::int32_t>(std::min(last_end, state.description.num_rows));
}

void ReceivedRows::read_records(HostHandle& state) const {
  layout_.token_major() ? read_token_records(state) : read_row_records(state);
}

void ReceivedRows::read_token_records(HostHandle& state) const {
  const auto top_k = static_cast<std::size_t>(context_->config.top_k);
  const std::byte* record = records();
  const auto num_content_rows = static_cast<std::size_t>(state.tables.content_rows(rank()));
  for (std::size_t row = 0; row < num_content_rows; ++row) {
    TokenRecordHeader header;
    std::memcpy(&header, record, sizeof(header));
    state.src_rank[row] = header.src_rank;
    state.src_token[row] = header.src_token;
    const std::byte* ids = record + sizeof(header);
    std::memcpy(&state.local_experts[row * top_k], ids, top_k * sizeof(std::int32_t));
    std::memcpy(&state.row_weights[row * top_k], ids + top_k * sizeof(std::int32_t), top_k * sizeof(float));
    record += layout_.record_bytes();
  }
}

void ReceivedRows::read_row_records(HostHandle& state) const {
  const auto* row_records = reinterpret_cast<const RowRecord*>(records());
  for (std::size_t local = 0; local < state.expert_counts.size(); ++local) {
    // Only rows that carry a token were written; the records of padding are left over from other calls.
    const auto begin = static_cast<std::size_t>(state.expert_begin[local]);
    const std::size_t end = begin + static_cast<std::size_t>(state.expert_counts[local]);
    for (std::size_t row = begin; row < end; ++row) {
      state.records[row] = row_records[row];
      state.src_rank[row] = row_records[row].src_rank;
      state.src_token[row] = row_records[row].src_token;
      state.row_expert[row] = static_cast<std::int32_t>(local);
      state.row_weights[row] = row_records[row].weight;
    }
  }
}

}  // namespace epistle::host
