// Sums over a token's rows, in the order of the contract, wherever the rows lie; and weights on rows.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "dispatch/host/engine/host_context.hpp"
#include "dispatch/host/engine/row_mover.hpp"

namespace epistle::host {

/// Terms of one token's sum, in the order of the contract. Reused from token to token.
class TermList {
 public:
  /// One per thread, so that nothing is allocated in steady state and workers do not share.
  [[nodiscard]] static TermList& of_thread();

  void clear() noexcept {
    terms_.clear();
    keys_.clear();
    group_ends_.clear();
  }
  /// Appends a term.
  void append(std::int32_t key, const SumTerm& term) {
    terms_.push_back(term);
    keys_.push_back(key);
  }
  /// Inserts a term behind the terms of the same and of lower keys.
  void insert(std::int32_t key, const SumTerm& term);
  /// Makes every run of equal keys a group.
  void group_by_key();

  [[nodiscard]] std::span<const SumTerm> terms() const noexcept { return terms_; }
  [[nodiscard]] std::span<const std::int32_t> group_ends() const noexcept { return group_ends_; }

 private:
  std::vector<SumTerm> terms_;
  std::vector<std::int32_t> keys_;
  std::vector<std::int32_t> group_ends_;
};

/// The sum of one token, to its place in `request.out`.
[[nodiscard]] SumJob sum_job(const HostContext& context, const SumRequest& request, const TermList& terms,
                             std::int64_t token) noexcept;

/// Sum every token of the request, from token rows or from expert rows: `row_of_send(idx)` is the address of the row
/// that belongs to entry `idx` of the handle's sends, `row_of_entry(entry)` that of entry `entry` of its table.
template <typename TokenRow>
void sum_token_rows(HostContext& context, const SumRequest& request, const TokenRow& row_of_send) {
  const HostHandle& handle = *request.handle;
  const bool by_rank = context.config.order != SumOrder::kFlat;
  context.pool.parallel_for(handle.num_tokens, [&](std::int64_t begin, std::int64_t end) {
    TermList& list = TermList::of_thread();
    for (std::int64_t token = begin; token < end; ++token) {
      list.clear();
      const auto t = static_cast<std::size_t>(token);
      for (auto idx = static_cast<std::size_t>(handle.send_begin[t]);
           idx < static_cast<std::size_t>(handle.send_begin[t + 1]); ++idx) {
        const SendEntry& send = handle.sends[idx];
        const SumTerm term{.row = row_of_send(idx), .weight = send.weight_sum};
        by_rank ? list.insert(send.sum_order, term) : list.append(send.sum_order, term);
      }
      sum_rows(sum_job(context, request, list, token));
    }
    store_fence();
  });
}

template <typename ExpertRow>
void sum_expert_rows(HostContext& context, const SumRequest& request, const ExpertRow& row_of_entry) {
  const HostHandle& handle = *request.handle;
  const bool by_rank = context.config.order != SumOrder::kFlat;
  const auto top_k = static_cast<std::size_t>(context.config.top_k);
  context.pool.parallel_for(handle.num_tokens, [&](std::int64_t begin, std::int64_t end) {
    TermList& list = TermList::of_thread();
    for (std::int64_t token = begin; token < end; ++token) {
      list.clear();
      const std::size_t first_entry = static_cast<std::size_t>(token) * top_k;
      for (std::size_t entry = first_entry; entry < first_entry + top_k; ++entry) {
        if (handle.dst_row[entry] < 0) continue;
        const SumTerm term{.row = row_of_entry(entry), .weight = handle.weights[entry]};
        const std::int32_t key = handle.sends[static_cast<std::size_t>(handle.send_of[entry])].sum_order;
        by_rank ? list.insert(key, term) : list.append(key, term);
      }
      if (by_rank) list.group_by_key();
      sum_rows(sum_job(context, request, list, token));
    }
    store_fence();
  });
}

/// RowMover::receive_sums that reads rows where the experts left them, in the combine section of every rank.
void sum_rows_in_place(HostContext& context, const SumRequest& request);

/// RowMover::apply_row_weights for rows that the row kernels can read.
void apply_row_weights(HostContext& context, const RowWeightJob& job);

}  // namespace epistle::host
