// `alltoall`: permute, one all-to-all-v, unpermute, as one would write it with MPI; the conservative baseline.
// token_major sends one row per (token, rank), expert layouts one per (token, expert), sorted by expert. Combine goes
// the same way back; `hierarchical` sums a token's rows of one rank before they are sent.
#pragma once

#include "dispatch/host/engine/host_dispatcher.hpp"

namespace epistle::host {

class AllToAllDispatcher final : public HostDispatcher {
 public:
  static constexpr std::string_view kName = "alltoall";

  AllToAllDispatcher(Group& group, const DispatcherConfig& config)
      : HostDispatcher(group, config, Transport::kAllToAll) {}

  [[nodiscard]] std::string_view name() const noexcept override { return kName; }

 protected:
  void reserve_transport(HandleState& handle) override;
  void plan_transport(HandleState& handle) override;
  void send_rows(const MoveJob& job) override;
  void receive_rows(const MoveJob& job) override;
  void send_sums(const SumRequest& request) override;
  void receive_sums(const SumRequest& request) override;

 private:
  /// Rows that `src` packs for `dst`: where they begin in its send buffer, and how many there are.
  struct Segment {
    std::int64_t begin = 0;
    std::int64_t num_rows = 0;
  };
  [[nodiscard]] Segment packed_segment(const HandleState& handle, int src, int dst) const;
  [[nodiscard]] std::int64_t pairs_before(const HandleState& handle, int src, int dst) const;
  [[nodiscard]] bool sends_partial_sums() const noexcept {
    return !layout().token_major() && config().combine == CombineMode::kHierarchical;
  }

  void compute_packed_begins(const HandleState& handle);
  void pack(const std::byte* source, std::byte* target, const HandleState& handle, std::int64_t row_bytes);
  void pull(const HandleState& handle, BufferSection from, BufferSection to, std::int64_t row_bytes);
  void sort_by_expert(const std::byte* source, std::byte* target, const HandleState& handle, std::int64_t row_bytes);
  void unsort(const std::byte* source, std::byte* target, const HandleState& handle, std::int64_t row_bytes);
  void sum_pairs(const SumRequest& request);
  void pull_back(const HandleState& handle, std::int64_t row_bytes);

  std::vector<std::int64_t> packed_begin_;  ///< [columns] scratch: where this rank packs the rows of each column
  std::vector<std::int32_t> pair_begin_;    ///< [num_ranks] scratch: where the sums of each rank are staged
};

}  // namespace epistle::host
