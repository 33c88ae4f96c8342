// What the dispatchers of the host device share: worker threads, vectorised row loops, and sums over a token's rows.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "dispatch/host/engine/collective_dispatcher.hpp"
#include "dispatch/host/engine/row_kernels.hpp"
#include "dispatch/host/engine/worker_pool.hpp"

namespace epistle::host {

/// From this many bytes per rank on, a transfer's rows are written past the caches.
[[nodiscard]] std::int64_t streaming_threshold_bytes(int num_ranks);

/// Terms of one token's sum, in the order of the contract. Reused from token to token.
class TermList {
 public:
  void clear() noexcept {
    terms_.clear();
    ranks_.clear();
    group_ends_.clear();
  }
  /// Appends a term.
  void append(int rank, const SumTerm& term) {
    terms_.push_back(term);
    ranks_.push_back(rank);
  }
  /// Inserts a term behind the terms of the same and of lower ranks.
  void insert_by_rank(int rank, const SumTerm& term);
  /// Makes every run of equal ranks a group.
  void group_by_rank();

  [[nodiscard]] std::span<const SumTerm> terms() const noexcept { return terms_; }
  [[nodiscard]] std::span<const std::int32_t> group_ends() const noexcept { return group_ends_; }

 private:
  std::vector<SumTerm> terms_;
  std::vector<int> ranks_;
  std::vector<std::int32_t> group_ends_;
};

/// Rows that lie one behind the other, here and there.
struct RowBlock {
  const std::byte* source = nullptr;
  std::byte* target = nullptr;
  std::int64_t num_rows = 0;
  std::int64_t row_bytes = 0;
  StoreMode mode = StoreMode::kCached;
};

class HostDispatcher : public CollectiveDispatcher {
 protected:
  HostDispatcher(Group& group, const DispatcherConfig& config, Transport transport);

  void copy_rows(const std::byte* source, std::byte* target, std::int64_t num_rows) override;
  void apply_row_weights(const HandleState& handle, const std::byte* saved_rows, std::byte* grad_rows,
                         float* grad_weights) override;

  /// Copies a block, shared among the workers.
  void copy_block(const RowBlock& block);

  /// Whether a transfer of `num_bytes` should go past the caches.
  [[nodiscard]] StoreMode store_mode(std::int64_t num_bytes) const noexcept;

  /// Sum every token of the request, from token rows or from expert rows: `row_of_send(idx)` is the address of the row
  /// that belongs to entry `idx` of the handle's sends, `row_of_entry(entry)` that of entry `entry` of its table.
  template <typename TokenRow>
  void sum_token_rows(const SumRequest& request, const TokenRow& row_of_send);
  template <typename ExpertRow>
  void sum_expert_rows(const SumRequest& request, const ExpertRow& row_of_entry);

  [[nodiscard]] WorkerPool& pool() noexcept { return pool_; }

 private:
  /// Per thread, so that nothing is allocated in steady state and workers do not share.
  static TermList& term_list();
  [[nodiscard]] SumJob sum_job(const SumRequest& request, const TermList& terms, std::int64_t token) const noexcept;

  std::int64_t stream_bytes_;
  WorkerPool pool_;
};

template <typename TokenRow>
void HostDispatcher::sum_token_rows(const SumRequest& request, const TokenRow& row_of_send) {
  const HandleState& handle = *request.handle;
  const bool by_rank = config().combine == CombineMode::kHierarchical;
  pool().parallel_for(handle.stats.num_tokens, [&](std::int64_t begin, std::int64_t end) {
    TermList& list = term_list();
    for (std::int64_t token = begin; token < end; ++token) {
      list.clear();
      const auto t = static_cast<std::size_t>(token);
      for (auto idx = static_cast<std::size_t>(handle.send_begin[t]);
           idx < static_cast<std::size_t>(handle.send_begin[t + 1]); ++idx) {
        const SendEntry& send = handle.sends[idx];
        const SumTerm term{.row = row_of_send(idx), .weight = send.weight_sum};
        by_rank ? list.insert_by_rank(send.dst_rank, term) : list.append(send.dst_rank, term);
      }
      sum_rows(sum_job(request, list, token));
    }
    store_fence();
  });
}

template <typename ExpertRow>
void HostDispatcher::sum_expert_rows(const SumRequest& request, const ExpertRow& row_of_entry) {
  const HandleState& handle = *request.handle;
  const bool by_rank = config().combine == CombineMode::kHierarchical;
  const auto top_k = static_cast<std::size_t>(config().top_k);
  pool().parallel_for(handle.stats.num_tokens, [&](std::int64_t begin, std::int64_t end) {
    TermList& list = term_list();
    for (std::int64_t token = begin; token < end; ++token) {
      list.clear();
      const std::size_t first_entry = static_cast<std::size_t>(token) * top_k;
      for (std::size_t entry = first_entry; entry < first_entry + top_k; ++entry) {
        if (handle.dst_row[entry] < 0) continue;
        const SumTerm term{.row = row_of_entry(entry), .weight = handle.weights[entry]};
        const std::int32_t rank = rank_of_entry(handle, entry);
        by_rank ? list.insert_by_rank(rank, term) : list.append(rank, term);
      }
      if (by_rank) list.group_by_rank();
      sum_rows(sum_job(request, list, token));
    }
    store_fence();
  });
}

}  // namespace epistle::host
