// `direct` on CUDA: every sender writes each row once per (token, rank) straight to its final place in the receiver's
// memory; in expert layouts the receiver duplicates rows as they arrive. On the way back every rank reads the rows of
// its tokens where they lie; for hierarchical sums of expert rows the experts' ranks write partial sums into the stage
// of the token's rank, which adds as they arrive.
#pragma once

#include <memory>

#include "dispatch/cuda/direct/copy_engines.hpp"
#include "dispatch/cuda/engine/cuda_collective.hpp"

namespace epistle::cuda {

class DirectDispatcher final : public CudaCollective {
 public:
  static constexpr std::string_view kName = "direct";

  /// CudaMover::kCopyEngines asks for token_major and exact sizing (checked by make_cuda_dispatcher).
  DirectDispatcher(Group& group, const DispatcherConfig& config, const CudaOptions& options, int device);

  [[nodiscard]] std::string_view name() const noexcept override { return kName; }

 protected:
  void start_move(const CudaHandleState& handle, MoveArgs& args) override;
  void start_sum(const CudaHandleState& handle, SumArgs& args) override;
  // On a shared GPU a dispatch that starts early would take SMs from a rank whose prepare the others wait for. Starting
  // early came with bulk copies (sm_90).
  [[nodiscard]] bool can_follow_closely() const noexcept override {
    return copy_engines_ == nullptr && !shares_gpu() && has_bulk_copies();
  }

 private:
  std::unique_ptr<CopyEngines> copy_engines_;  ///< with CudaMover::kCopyEngines; for dispatch alone
};

}  // namespace epistle::cuda
