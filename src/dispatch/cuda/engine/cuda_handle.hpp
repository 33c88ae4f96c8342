// What a handle knows on the CUDA device: arrays in device memory, and a summary that the device writes for the host.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include <cuda_runtime_api.h>

#include "dispatch/call/handle_state.hpp"
#include "dispatch/call/placed_experts.hpp"
#include "dispatch/cuda/device/device_types.hpp"
#include "dispatch/cuda/engine/buffer_carver.hpp"
#include "dispatch/cuda/engine/device_buffers.hpp"
#include "layout/dispatch_layout.hpp"

namespace epistle::cuda {

struct EngineContext;

class CudaHandleState final : public HandleState {
 public:
  /// `told`: told_bytes() of pinned memory at `told_at`, where the device tells the host of this handle.
  CudaHandleState(const EngineContext& context, std::shared_ptr<PinnedMemory> told, std::int64_t told_at);

  [[nodiscard]] bool counts_are_known() override;
  void wait_for_counts() override;
  [[nodiscard]] std::vector<std::int32_t> read_expert_counts() override;
  [[nodiscard]] IdsView routed_ids() const noexcept override { return {arrays.expert_ids, num_tokens, arrays.top_k}; }

  /// Sets the arrays up for a routing of `num_tokens` over `placed`.
  void begin(std::uint64_t id, std::int64_t tokens, const PlacedExperts& placed);
  /// Describes the rows of a routing over `placed`: a graph routes by the placement in force, whichever it was captured
  /// with.
  void describe(const PlacedExperts& placed);
  /// True when the device has written the summary of the last prepare.
  [[nodiscard]] bool is_complete() const noexcept;
  /// True when it is in host memory.
  [[nodiscard]] bool has_summary() const noexcept;
  /// True when it has found nothing, has kept its numbers, and has told so, which combine does.
  [[nodiscard]] bool has_passed() const noexcept;
  /// The same where nobody has told yet: asks the device, which takes some microseconds but waits for no kernel.
  [[nodiscard]] bool has_passed_on_device();
  /// Takes stats and output from the summary, wherever it is.
  void finish();

  /// How to read the summary of the last prepare, waiting for it or not; detached when the dispatcher goes.
  using Reader = std::function<void(CudaHandleState& handle, bool may_wait)>;
  void attach(Reader reader) { reader_ = std::move(reader); }
  void detach() noexcept { reader_ = nullptr; }

  std::uint64_t prepare_id = 0;  ///< counts prepares of this rank
  HandleArrays arrays;
  Summary* summary = nullptr;  ///< pinned host memory
  bool checked = true;         ///< what the device found has been looked at
  bool finished = true;
  bool captured = false;           ///< into a graph: other placements may come while it lives
  bool routed = false;             ///< by a dispatch that was one call with its routing: see RowTransport::complete
  bool is_left_on_device = false;  ///< the summary, until the host asks for it

  /// From the summary: pairs that fit [source, destination], output rows, pairs sent to other ranks, rows of experts.
  [[nodiscard]] const std::int32_t* pair_matrix() const noexcept {
    return reinterpret_cast<const std::int32_t*>(summary + 1);
  }
  [[nodiscard]] std::int64_t output_rows(int rank) const noexcept { return pair_matrix()[ranks_ * ranks_ + rank]; }
  [[nodiscard]] std::int64_t other_pairs(int rank) const noexcept {
    return pair_matrix()[ranks_ * (ranks_ + 1) + rank];
  }

  /// (token, rank) pairs that fit.
  [[nodiscard]] std::int32_t num_pairs(int source, int destination) const noexcept {
    return pairs[static_cast<std::size_t>(source) * static_cast<std::size_t>(ranks_) +
                 static_cast<std::size_t>(destination)];
  }
  std::vector<std::int32_t> pairs;  ///< [num_ranks (source), num_ranks (destination)]; empty until finished

 private:
  [[nodiscard]] bool is_settled() const noexcept;
  void fetch_summary();

  Reader reader_;
  DispatchLayout layout_;
  int device_;
  int rank_;
  int ranks_;
  DeviceBuffer memory_;
  std::shared_ptr<PinnedMemory>
      told_;          ///< of all handles of the dispatcher, which the host looks through in every call
  std::byte* probe_;  ///< in it
};

}  // namespace epistle::cuda
