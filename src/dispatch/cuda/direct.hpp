// `direct` on CUDA: every sender writes each row once per (token, rank) straight to its final place in the receiver's
// memory; in expert layouts the receiver duplicates rows as they arrive. On the way back the experts' ranks write their
// rows or partial sums into the stage of the token's rank, which adds as they arrive.
#pragma once

#include "dispatch/cuda/cuda_collective.hpp"

namespace epistle::cuda {

class DirectDispatcher final : public CudaCollective {
 public:
  static constexpr std::string_view kName = "direct";

  DirectDispatcher(Group& group, const DispatcherConfig& config, const CudaOptions& options, int device)
      : CudaCollective(group, config, options, device) {}

  [[nodiscard]] std::string_view name() const noexcept override { return kName; }

 protected:
  void start_move(const CudaHandleState& handle, MoveArgs& args) override;
  void start_sum(const CudaHandleState& handle, SumArgs& args) override;
};

}  // namespace epistle::cuda
