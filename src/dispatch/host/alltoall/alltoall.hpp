// `alltoall`: permute, one all-to-all-v, unpermute, as one would write it with MPI; the conservative baseline.
// token_major sends one row per (token, rank), expert layouts one per (token, expert), sorted by expert. Combine goes
// the same way back; `hierarchical` sums a token's rows of one rank before they are sent. On one host the rows are
// fetched from their senders' buffers; over hosts they are put into the receivers' (LinkedExchange).
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "dispatch/host/alltoall/linked_exchange.hpp"
#include "dispatch/host/alltoall/packed_rows.hpp"
#include "dispatch/host/engine/host_context.hpp"
#include "dispatch/host/engine/row_mover.hpp"

namespace epistle::host {

class AllToAllMover final : public RowMover {
 public:
  explicit AllToAllMover(HostContext& context);

  [[nodiscard]] std::int64_t network_bytes() const noexcept override { return linked_ ? linked_->sent_bytes() : 0; }
  void renew() override {
    if (linked_) linked_->renew();
  }
  void exchange_records(HostHandle& handle) override;
  void reserve(HostHandle& handle) override;
  void plan(HostHandle& handle) override;
  void send_rows(const MoveJob& job) override;
  void receive_rows(const MoveJob& job) override;
  void send_sums(const SumRequest& request) override;
  void receive_sums(const SumRequest& request) override;
  void apply_row_weights(const RowWeightJob& job) override;

 private:
  using SegmentFrom = std::function<Segment(int peer)>;
  [[nodiscard]] bool sends_partial_sums() const noexcept { return context_.plan.returns_partial_sums(); }

  void compute_packed_begins(const HostHandle& handle);
  /// Where this rank packs a row for another; packed begins are those of the handle.
  [[nodiscard]] std::int64_t packed_row(const HostHandle& handle, std::int32_t column,
                                        std::int32_t row) const noexcept {
    return packed_begin_[static_cast<std::size_t>(column)] + row - handle.tables.row_begin(context_.rank, column);
  }
  /// Where rows that go back to their tokens' ranks lie.
  [[nodiscard]] BufferSection returned_section() const noexcept {
    return context_.layout().token_major() ? BufferSection::kCombineRows : BufferSection::kSendRows;
  }
  [[nodiscard]] std::int64_t gradient_bytes() const noexcept {
    return context_.layout().weights_per_row() * static_cast<std::int64_t>(sizeof(float));
  }
  void pull(const LinkedExchange::Part& part, const SegmentFrom& segment_from, std::int64_t num_rows_of_all);
  /// How received rows lie: as they travel, sources one behind the other, or as the output has them.
  enum class RunOrder { kAsReceived, kAsOutput };
  void copy_runs(RunOrder to, const std::byte* source, std::byte* target, const HostHandle& handle,
                 std::int64_t row_bytes);
  void receive_scales(const HostHandle& handle, std::int64_t scale_bytes);
  void sum_pairs(const SumRequest& request);
  void bring_back(const HostHandle& handle, std::int64_t row_bytes);
  void send_gradients(const HostHandle& handle, const LinkedExchange::RouteTo& rows_to);
  void place_gradients(const SumRequest& request) const;

  HostContext& context_;
  std::optional<LinkedExchange> linked_;    ///< where ranks are on several hosts
  std::vector<std::int64_t> packed_begin_;  ///< [columns] scratch: where this rank packs the rows of each column
  std::vector<std::int32_t> pair_begin_;    ///< [num_ranks] scratch: where the sums of each rank are staged
};

}  // namespace epistle::host
