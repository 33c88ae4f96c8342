// `low_latency` on CUDA: rows of few tokens travel as lines that carry their own arrival flags, to fixed places, and
// nothing is agreed on before they are sent. What it gains by that, it gains in a dispatch with ids under capacity
// sizing and in combine; every other call goes as it does in `direct`.
#pragma once

#include <string>

#include "dispatch/cuda/direct/direct.hpp"
#include "dispatch/cuda/engine/context.hpp"
#include "dispatch/cuda/engine/transport.hpp"
#include "dispatch/cuda/low_latency/line_plan.hpp"
#include "dispatch/cuda/low_latency/row_flags.hpp"

namespace epistle::cuda {

class LowLatencyTransport final : public RowTransport {
 public:
  /// Collective.
  explicit LowLatencyTransport(EngineContext& context);

  [[nodiscard]] bool agrees_on_host() const noexcept override { return false; }
  [[nodiscard]] TuningChoice tuning_for(const TuningQuery& query) const override { return direct_.tuning_for(query); }
  [[nodiscard]] std::string describe_tuning(const TuningQuery& query) const override {
    return direct_.describe_tuning(query);
  }
  void start_move(const CudaHandleState& handle, MoveArgs& args) override;
  void start_sum(const CudaHandleState& handle, SumArgs& args) override;
  [[nodiscard]] bool routes_rows() const noexcept override { return lines_.routes; }
  void start_routed_move(const CudaHandleState& handle, const PrepareArgs& routing, MoveArgs& args) override;
  void complete(const CudaHandleState& handle) override;
  [[nodiscard]] bool pushes_outputs() const noexcept override { return true; }
  [[nodiscard]] device::RowFlags row_flags(std::int32_t buffer) const override { return flags_.of_buffer(buffer); }
  [[nodiscard]] bool can_follow_closely() const noexcept override { return direct_.can_follow_closely(); }
  [[nodiscard]] WireBytes wire_bytes(const CudaHandleState& handle) const override {
    return direct_.wire_bytes(handle);
  }

 private:
  /// Whether dispatches by lines do more than move rows.
  [[nodiscard]] bool has_extras() const noexcept;
  /// SMs that the call at hand may occupy.
  [[nodiscard]] int budget() const noexcept;
  /// Whether the next kernel can lie beside one of so many blocks without taking more than a call may: always where a
  /// call may take all of a GPU that no other rank uses.
  [[nodiscard]] bool may_overlap(int blocks) const noexcept {
    return 2 * blocks <= budget() || (context_.num_sms == 0 && context_.device_group.early_start);
  }
  /// Tokens that a call is launched for: this rank's, and those that others may have.
  [[nodiscard]] std::int64_t tokens_to_move(const CudaHandleState& handle) const noexcept;
  /// Blocks for so many chunks that warps move, within the budget of the call.
  [[nodiscard]] int num_blocks(std::int64_t num_units) const noexcept;

  EngineContext& context_;
  LinePlan lines_;
  DirectTransport direct_;
  RowFlagMemory flags_;
};

}  // namespace epistle::cuda
