#include "dispatch/cuda/direct.hpp"

#include "group/cuda/cuda_error.hpp"

namespace epistle::cuda {

void DirectDispatcher::start_move(const CudaHandleState& handle, MoveArgs& args) {
  const TuningChoice choice = choose(tuning_query(TunedCall::kDispatch, handle.stats.num_tokens));
  args.tuning = {.num_blocks = choice.num_blocks, .remote_blocks = choice.peer_blocks, .bulk = choice.bulk};
  check_cuda(launch_move(args, stream()), "launching dispatch");
}

void DirectDispatcher::start_sum(const CudaHandleState& handle, SumArgs& args) {
  const TuningChoice choice = choose(tuning_query(TunedCall::kCombine, handle.stats.num_tokens));
  args.tuning = {.num_blocks = choice.num_blocks, .push_blocks = choice.peer_blocks};
  check_cuda(launch_sum(args, stream()), "launching combine");
}

}  // namespace epistle::cuda
