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
  /// Makes every run of keys of one domain a group: keys are ranks, ascending.
  void group_by_domain(const Domains& domains);

  /// Puts one term, with the key of the last, in the place of every group; there are no groups then.
  void replace_groups(std::span<const SumTerm> sums);

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

/// The terms of token `idx` of a table, in the order of the contract but for domains: token rows, or expert rows with a
/// group for every rank. `row_of_send(idx)` is the address of the row that belongs to entry `idx` of the table's sends,
/// `row_of_entry(entry)` that of entry `entry` of the table.
template <typename TokenRow>
void list_token_terms(SumOrder order, const TokenTable& table, std::size_t idx, const TokenRow& row_of_send,
                      TermList& list) {
  list.clear();
  for (auto at = static_cast<std::size_t>(table.send_begin[idx]);
       at < static_cast<std::size_t>(table.send_begin[idx + 1]); ++at) {
    const SendEntry& send = table.sends[at];
    const SumTerm term{.row = row_of_send(at), .weight = send.weight_sum};
    order != SumOrder::kFlat ? list.insert(send.sum_order, term) : list.append(send.sum_order, term);
  }
}

template <typename ExpertRow>
void list_expert_terms(SumOrder order, std::size_t top_k, const TokenTable& table, std::size_t idx,
                       const ExpertRow& row_of_entry, TermList& list) {
  list.clear();
  const std::size_t first_entry = idx * top_k;
  for (std::size_t entry = first_entry; entry < first_entry + top_k; ++entry) {
    if (table.dst_row[entry] < 0) continue;
    const SumTerm term{.row = row_of_entry(entry), .weight = table.weights[entry]};
    const std::int32_t key = table.sends[static_cast<std::size_t>(table.send_of[entry])].sum_order;
    order != SumOrder::kFlat ? list.insert(key, term) : list.append(key, term);
  }
  if (order != SumOrder::kFlat) list.group_by_key();
}

/// Where sums are per rank and then per domain: replaces the terms of every rank by their rounded sum, and groups what
/// is left by domain.
void sum_ranks_first(const HostContext& context, bool weighted, TermList& list);

/// Sum every token of the request, from token rows or from expert rows: `row_of_send(idx)` is the address of the row
/// that belongs to entry `idx` of the handle's sends, `row_of_entry(entry)` that of entry `entry` of its table.
template <typename TokenRow>
void sum_token_rows(HostContext& context, const SumRequest& request, const TokenRow& row_of_send) {
  const HostHandle& handle = *request.handle;
  context.pool.parallel_for(handle.num_tokens, [&](std::int64_t begin, std::int64_t end) {
    TermList& list = TermList::of_thread();
    for (std::int64_t token = begin; token < end; ++token) {
      list_token_terms(context.config.order, handle, static_cast<std::size_t>(token), row_of_send, list);
      if (context.sums_by_domain()) list.group_by_domain(context.domains());
      sum_rows(sum_job(context, request, list, token));
    }
    store_fence();
  });
}

template <typename ExpertRow>
void sum_expert_rows(HostContext& context, const SumRequest& request, const ExpertRow& row_of_entry) {
  const HostHandle& handle = *request.handle;
  const auto top_k = static_cast<std::size_t>(context.config.top_k);
  context.pool.parallel_for(handle.num_tokens, [&](std::int64_t begin, std::int64_t end) {
    TermList& list = TermList::of_thread();
    for (std::int64_t token = begin; token < end; ++token) {
      list_expert_terms(context.config.order, top_k, handle, static_cast<std::size_t>(token), row_of_entry, list);
      const bool by_domain = context.sums_by_domain();
      if (by_domain) sum_ranks_first(context, request.weighted, list);
      SumJob job = sum_job(context, request, list, token);
      if (by_domain) job.weighted = false;  // the weights are in the ranks' sums
      sum_rows(job);
    }
    store_fence();
  });
}

/// RowMover::receive_sums that reads rows where the experts left them, in the combine section of every rank.
void sum_rows_in_place(HostContext& context, const SumRequest& request);

/// Entries of a table: [begin, end).
struct EntryRange {
  std::size_t begin = 0;
  std::size_t end = 0;
};

/// What the ranks of the experts have given as gradients of these entries' weights; 0 for entries without a row.
void gather_weight_gradients(const HostContext& context, const TokenTable& table, const EntryRange& entries,
                             float* out);

/// RowMover::apply_row_weights for rows that the row kernels can read.
void apply_row_weights(HostContext& context, const RowWeightJob& job);

}  // namespace epistle::host
