// `direct` on CUDA: every sender writes each row once per (token, rank) straight to its final place in the receiver's
// memory; in expert layouts the receiver duplicates rows as they arrive. On the way back every rank reads the rows of
// its tokens where they lie; for hierarchical sums of expert rows the experts' ranks write partial sums into the stage
// of the token's rank, which adds as they arrive.
#pragma once

#include <memory>
#include <string>

#include "dispatch/cuda/direct/copy_engines.hpp"
#include "dispatch/cuda/direct/tuning.hpp"
#include "dispatch/cuda/engine/context.hpp"
#include "dispatch/cuda/engine/transport.hpp"

namespace epistle::cuda {

class DirectTransport final : public RowTransport {
 public:
  /// Collective.
  explicit DirectTransport(EngineContext& context);

  [[nodiscard]] bool agrees_on_host() const noexcept override { return false; }
  [[nodiscard]] TuningChoice tuning_for(const TuningQuery& query) const override { return choose(query); }
  [[nodiscard]] std::string describe_tuning(const TuningQuery& query) const override { return describe(query); }
  void start_move(const CudaHandleState& handle, MoveArgs& args) override;
  void start_sum(const CudaHandleState& handle, SumArgs& args) override;
  // On a shared GPU a dispatch that starts early would take SMs from a rank whose prepare the others wait for. Starting
  // early came with bulk copies (sm_90).
  [[nodiscard]] bool can_follow_closely() const noexcept override {
    return copy_engines_ == nullptr && !context_.shares_gpu && context_.has_bulk_copies();
  }
  [[nodiscard]] WireBytes wire_bytes(const CudaHandleState& handle) const override;

 private:
  EngineContext& context_;
  std::unique_ptr<CopyEngines> copy_engines_;  ///< with CudaMover::kCopyEngines; for dispatch alone
};

}  // namespace epistle::cuda
