#include "dispatch/host/engine/token_places.hpp"

#include <algorithm>
#include <cstring>

namespace epistle::host {

TokenPlaces::TokenPlaces(HostContext& context)
    : context_(&context),
      layout_(context.layout()),
      top_k_(static_cast<std::size_t>(context.config.top_k)),
      rank_of_position_(top_k_) {
  const auto ranks = static_cast<std::size_t>(context.num_ranks);
  const auto experts = static_cast<std::size_t>(context.layout().params().num_experts);
  last_token_to_rank_.resize(ranks);
  num_placed_.resize(layout_.token_major() ? ranks : experts);
  send_of_rank_.resize(ranks);
  next_row_.resize(ranks);
}

void TokenPlaces::place(const LayoutTables& tables, int src_rank, TokenTable& table, PlaceCounts& counts) {
  const bool token_major = layout_.token_major();
  const bool by_last_place = context_->config.order == SumOrder::kDeepEpV2;
  std::fill(counts.pairs_to_rank.begin(), counts.pairs_to_rank.end(), 0);
  std::fill(counts.dropped_of_expert.begin(), counts.dropped_of_expert.end(), 0);
  std::fill(last_token_to_rank_.begin(), last_token_to_rank_.end(), -1);
  std::fill(num_placed_.begin(), num_placed_.end(), 0);
  const std::size_t top_k = top_k_;
  const std::size_t num_tokens = table.expert_ids.size() / top_k;
  table.dst_row.resize(num_tokens * top_k);
  if (!token_major) table.send_of.resize(num_tokens * top_k);
  table.sends.clear();
  table.send_begin.resize(num_tokens + 1);

  std::size_t entry = 0;
  for (std::size_t token = 0; token < num_tokens; ++token) {
    table.send_begin[token] = static_cast<std::int32_t>(table.sends.size());
    for (std::size_t position = 0; position < top_k; ++position, ++entry) {
      table.dst_row[entry] = -1;
      const std::int32_t expert = table.expert_ids[entry];
      if (expert == kNoExpert) continue;
      const std::int32_t dst_rank = context_->rank_of_expert[static_cast<std::size_t>(expert)];
      const auto dst = static_cast<std::size_t>(dst_rank);
      const bool pair_seen = last_token_to_rank_[dst] == static_cast<std::int64_t>(token);
      std::int32_t send = pair_seen ? send_of_rank_[dst] : -1;
      std::int32_t row = -1;
      if (token_major && pair_seen) {
        row = send < 0 ? -1 : table.sends[static_cast<std::size_t>(send)].row;
      } else {
        const std::int32_t column = token_major ? dst_rank : expert;
        const std::int32_t idx = num_placed_[static_cast<std::size_t>(column)]++;
        if (idx < tables.num_kept(src_rank, column)) row = tables.row_begin(src_rank, column) + idx;
      }
      if (row >= 0 && send < 0) {
        send = static_cast<std::int32_t>(table.sends.size());
        table.sends.push_back({.dst_rank = dst_rank, .row = row, .weight_sum = 0.0F, .sum_order = dst_rank});
        ++counts.pairs_to_rank[dst];
      }
      last_token_to_rank_[dst] = static_cast<std::int64_t>(token);
      send_of_rank_[dst] = send;
      if (row < 0) {
        ++counts.dropped_of_expert[static_cast<std::size_t>(expert)];
        ++counts.dropped;
        continue;
      }
      table.dst_row[entry] = row;
      SendEntry& sent = table.sends[static_cast<std::size_t>(send)];
      sent.weight_sum += table.weights[entry];
      if (by_last_place) sent.sum_order = static_cast<std::int32_t>(position);
      if (!token_major) table.send_of[entry] = send;
      if (dst_rank != src_rank) ++counts.remote_assignments;
    }
  }
  table.send_begin[num_tokens] = static_cast<std::int32_t>(table.sends.size());
}

// ---- Records: what a receiver must know of its rows -----------------------------------------------------------------

void TokenPlaces::write_records(const TokenTable& table, int src_rank) {
  const std::int64_t record_bytes = layout_.record_bytes();
  write_all(table, src_rank, [this, record_bytes](int dst_rank, std::int32_t /*column*/, std::int32_t row) {
    return context_->memory.section(dst_rank, BufferSection::kRecords) + row * record_bytes;
  });
}

void TokenPlaces::write_records(const TokenTable& table, int src_rank, const RecordPlace& place) {
  write_all(table, src_rank, place);
}

template <typename Place>
void TokenPlaces::write_all(const TokenTable& table, int src_rank, const Place& place) {
  layout_.token_major() ? write_token_records(table, src_rank, place) : write_row_records(table, src_rank, place);
}

template <typename Place>
void TokenPlaces::write_token_records(const TokenTable& table, int src_rank, const Place& place) {
  const std::size_t top_k = top_k_;
  for (std::size_t token = 0; token + 1 < table.send_begin.size(); ++token) {
    const std::int32_t* ids = &table.expert_ids[token * top_k];
    const float* weights = &table.weights[token * top_k];
    for (std::size_t position = 0; position < top_k; ++position) {
      rank_of_position_[position] =
          ids[position] == kNoExpert ? -1 : context_->rank_of_expert[static_cast<std::size_t>(ids[position])];
    }
    for (auto idx = static_cast<std::size_t>(table.send_begin[token]);
         idx < static_cast<std::size_t>(table.send_begin[token + 1]); ++idx) {
      const SendEntry& send = table.sends[idx];
      std::byte* record = place(send.dst_rank, send.dst_rank, send.row);
      const TokenRecordHeader header{.src_rank = src_rank, .src_token = table.token_number(token)};
      std::memcpy(record, &header, sizeof(header));
      auto* record_ids = reinterpret_cast<std::int32_t*>(record + sizeof(header));
      auto* record_weights = reinterpret_cast<float*>(record_ids + top_k);
      const std::int32_t first_expert = layout_.partition().first_expert(send.dst_rank);
      for (std::size_t position = 0; position < top_k; ++position) {
        const bool is_there = rank_of_position_[position] == send.dst_rank;
        record_ids[position] = is_there ? ids[position] - first_expert : kNoExpert;
        record_weights[position] = is_there ? weights[position] : 0.0F;
      }
    }
  }
}

template <typename Place>
void TokenPlaces::write_row_records(const TokenTable& table, int src_rank, const Place& place) {
  const std::size_t top_k = top_k_;
  std::fill(last_token_to_rank_.begin(), last_token_to_rank_.end(), -1);
  for (std::size_t token = 0; token + 1 < table.send_begin.size(); ++token) {
    // Backwards, so that each row knows the token's next row on the same rank.
    for (std::size_t position = top_k; position-- > 0;) {
      const std::size_t entry = token * top_k + position;
      const std::int32_t row = table.dst_row[entry];
      if (row < 0) continue;
      const std::int32_t dst_rank = context_->rank_of_entry(table, entry);
      const auto dst = static_cast<std::size_t>(dst_rank);
      const bool has_next = last_token_to_rank_[dst] == static_cast<std::int64_t>(token);
      auto send = static_cast<std::size_t>(table.send_begin[token]);
      while (table.sends[send].dst_rank != dst_rank) ++send;
      const RowRecord record{.src_rank = src_rank,
                             .src_token = table.token_number(token),
                             .topk_idx = static_cast<std::int32_t>(position),
                             .primary_row = table.sends[send].row,
                             .next_row = has_next ? next_row_[dst] : -1,
                             .weight = table.weights[entry]};
      std::memcpy(place(dst_rank, table.expert_ids[entry], row), &record, sizeof(record));
      last_token_to_rank_[dst] = static_cast<std::int64_t>(token);
      next_row_[dst] = row;
    }
  }
}

}  // namespace epistle::host
