// `alltoall`: permute, one all-to-all-v, unpermute, as one would write it with MPI; the conservative baseline.
// token_major sends one row per (token, rank), expert layouts one per (token, expert), sorted by expert. Combine goes
// the same way back; `hierarchical` sums a token's rows of one rank before they are sent.
#pragma once

#include <cstdint>
#include <vector>

#include "dispatch/host/engine/host_context.hpp"
#include "dispatch/host/engine/row_mover.hpp"

namespace epistle::host {

class AllToAllMover final : public RowMover {
 public:
  explicit AllToAllMover(HostContext& context) : context_(context) {}

  void reserve(HostHandle& handle) override;
  void plan(HostHandle& handle) override;
  void send_rows(const MoveJob& job) override;
  void receive_rows(const MoveJob& job) override;
  void send_sums(const SumRequest& request) override;
  void receive_sums(const SumRequest& request) override;
  void apply_row_weights(const RowWeightJob& job) override;

 private:
  /// Rows that `src` packs for `dst`: where they begin in its send buffer, and how many there are.
  struct Segment {
    std::int64_t begin = 0;
    std::int64_t num_rows = 0;
  };
  [[nodiscard]] Segment packed_segment(const HostHandle& handle, int src, int dst) const;
  [[nodiscard]] std::int64_t pairs_before(const HostHandle& handle, int src, int dst) const;
  [[nodiscard]] bool sends_partial_sums() const noexcept { return context_.plan.returns_partial_sums(); }

  void compute_packed_begins(const HostHandle& handle);
  void pull(const HostHandle& handle, BufferSection from, BufferSection to, std::int64_t row_bytes);
  /// How received rows lie: as they travel, sources one behind the other, or as the output has them.
  enum class ChunkOrder { kBySource, kByExpert };
  void copy_chunks(ChunkOrder to, const std::byte* source, std::byte* target, const HostHandle& handle,
                   std::int64_t row_bytes);
  void receive_scales(const HostHandle& handle, std::int64_t scale_bytes);
  void sum_pairs(const SumRequest& request);
  void pull_back(const HostHandle& handle, std::int64_t row_bytes);

  HostContext& context_;
  std::vector<std::int64_t> packed_begin_;  ///< [columns] scratch: where this rank packs the rows of each column
  std::vector<std::int32_t> pair_begin_;    ///< [num_ranks] scratch: where the sums of each rank are staged
};

}  // namespace epistle::host
