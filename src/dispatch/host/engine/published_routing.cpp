#include "dispatch/host/engine/published_routing.hpp"

#include <algorithm>
#include <cstring>

#include "dispatch/host/engine/prefetch.hpp"

namespace epistle::host {

PublishedRouting::PublishedRouting(HostContext& context)
    : context_(&context),
      places_(context.layout()),
      top_k_(static_cast<std::size_t>(context.config.top_k)),
      first_expert_(context.layout().partition().first_expert(context.rank)),
      num_local_(static_cast<std::uint32_t>(context.layout().partition().num_local_experts(context.rank))),
      num_placed_(num_local_) {}

void PublishedRouting::publish(const HostHandle& state) {
  std::byte* records = context_->memory.section(context_->rank, BufferSection::kRecords);
  const std::size_t num_bytes = state.expert_ids.size() * sizeof(std::int32_t);
  if (num_bytes == 0) return;
  std::memcpy(records + places_.ids_offset(state.exchange), state.expert_ids.data(), num_bytes);
  std::memcpy(records + places_.weights_offset(state.exchange), state.weights.data(), num_bytes);
}

PublishedRouting::Source PublishedRouting::source_of(int rank, std::uint64_t exchange,
                                                     std::int64_t num_tokens) const noexcept {
  const std::byte* records = context_->memory.section(rank, BufferSection::kRecords);
  return {.rank = rank,
          .num_tokens = num_tokens,
          .ids = reinterpret_cast<const std::int32_t*>(records + places_.ids_offset(exchange)),
          .weights = reinterpret_cast<const float*>(records + places_.weights_offset(exchange))};
}

void PublishedRouting::take_back(std::uint64_t exchange, std::size_t num_entries) const noexcept {
  std::byte* const records = context_->memory.section(context_->rank, BufferSection::kRecords);
  prefetch_lines_to_write({records + places_.ids_offset(exchange), num_entries * sizeof(std::int32_t)});
  prefetch_lines_to_write({records + places_.weights_offset(exchange), num_entries * sizeof(float)});
}

void PublishedRouting::ask_for(int peer, const HostHandle& state) const noexcept {
  const Source source = source_of(peer, state.exchange, state.num_tokens);
  prefetch_lines(std::as_bytes(std::span(source.ids, state.expert_ids.size())));
  prefetch_lines(std::as_bytes(std::span(source.weights, state.expert_ids.size())));
}

void PublishedRouting::derive(HostHandle& state, std::span<const ConstCountsView> counts) {
  const bool token_major = context_->layout().token_major();
  for (int src = 0; src < context_->num_ranks; ++src) {
    const ConstCountsView& told = counts[static_cast<std::size_t>(src)];
    const Source source = source_of(src, state.exchange, told.num_tokens[0]);
    token_major ? derive_token_rows(source, state) : derive_expert_rows(source, state);
  }
  for (int dst = 0; dst < context_->num_ranks; ++dst) {
    const std::int64_t num_overflowing = state.tables.overflow_rows(dst);
    if (!token_major || num_overflowing == 0) {
      state.stats.dropped_in_group += num_overflowing;
      continue;
    }
    for (int src = 0; src < context_->num_ranks; ++src) {
      const ConstCountsView& told = counts[static_cast<std::size_t>(src)];
      state.stats.dropped_in_group +=
          dropped_assignments(source_of(src, state.exchange, told.num_tokens[0]), dst, state.tables.num_kept(src, dst));
    }
  }
}

void PublishedRouting::derive_token_rows(const Source& source, HostHandle& state) const {
  const std::int32_t row_begin = state.tables.row_begin(source.rank, context_->rank);
  const std::int32_t row_end = row_begin + state.tables.num_kept(source.rank, context_->rank);
  std::int32_t next_row = row_begin;
  for (std::int64_t token = 0; token < source.num_tokens; ++token) {
    const std::size_t first_entry = static_cast<std::size_t>(token) * top_k_;
    std::int32_t row = -1;
    for (std::size_t position = 0; position < top_k_; ++position) {
      const std::int32_t local = source.ids[first_entry + position] - first_expert_;
      // kNoExpert and the experts of other ranks are all out of range.
      if (static_cast<std::uint32_t>(local) >= num_local_) continue;
      if (row < 0) row = next_row++;
      if (row >= row_end) {
        ++state.expert_dropped[static_cast<std::size_t>(local)];
        continue;
      }
      const auto idx = static_cast<std::size_t>(row);
      state.src_rank[idx] = source.rank;
      state.src_token[idx] = static_cast<std::int32_t>(token);
      state.local_experts[idx * top_k_ + position] = local;
      state.row_weights[idx * top_k_ + position] = source.weights[first_entry + position];
      ++state.expert_counts[static_cast<std::size_t>(local)];
    }
  }
  state.set_num_pairs(source.rank, context_->rank, std::min(next_row, row_end) - row_begin);
}

void PublishedRouting::derive_expert_rows(const Source& source, HostHandle& state) {
  std::fill(num_placed_.begin(), num_placed_.end(), 0);
  std::int32_t num_pairs = 0;
  for (std::int64_t token = 0; token < source.num_tokens; ++token) {
    const std::size_t first_entry = static_cast<std::size_t>(token) * top_k_;
    std::int32_t primary_row = -1;
    RowRecord* last = nullptr;
    for (std::size_t position = 0; position < top_k_; ++position) {
      const std::int32_t local = source.ids[first_entry + position] - first_expert_;
      if (static_cast<std::uint32_t>(local) >= num_local_) continue;
      const auto expert = static_cast<std::size_t>(local);
      const std::int32_t idx = num_placed_[expert]++;
      if (idx >= state.tables.num_kept(source.rank, first_expert_ + local)) {
        ++state.expert_dropped[expert];
        continue;
      }
      const std::int32_t row = state.tables.row_begin(source.rank, first_expert_ + local) + idx;
      if (primary_row < 0) {
        primary_row = row;
        ++num_pairs;
      }
      if (last != nullptr) last->next_row = row;
      const auto at = static_cast<std::size_t>(row);
      last = &state.records[at];
      *last = RowRecord{.src_rank = source.rank,
                        .src_token = static_cast<std::int32_t>(token),
                        .topk_idx = static_cast<std::int32_t>(position),
                        .primary_row = primary_row,
                        .next_row = -1,
                        .weight = source.weights[first_entry + position]};
      state.src_rank[at] = source.rank;
      state.src_token[at] = static_cast<std::int32_t>(token);
      state.row_expert[at] = local;
      state.row_weights[at] = last->weight;
      ++state.expert_counts[expert];
    }
  }
  state.set_num_pairs(source.rank, context_->rank, num_pairs);
}

std::int64_t PublishedRouting::dropped_assignments(const Source& source, int dst_rank, std::int64_t num_kept) const {
  std::int64_t num_dropped = 0;
  std::int64_t num_pairs = 0;
  for (std::int64_t token = 0; token < source.num_tokens; ++token) {
    const std::int32_t* ids = source.ids + static_cast<std::size_t>(token) * top_k_;
    const auto num_there = std::count_if(ids, ids + top_k_, [&](std::int32_t expert) {
      return expert != kNoExpert && context_->rank_of_expert[static_cast<std::size_t>(expert)] == dst_rank;
    });
    if (num_there == 0) continue;
    if (num_pairs++ >= num_kept) num_dropped += num_there;
  }
  return num_dropped;
}

}  // namespace epistle::host
