#include "dispatch/cuda/direct/direct.hpp"

#include "gpu/cuda_error.hpp"
#include "gpu/heap/heap_agreement.hpp"

namespace epistle::cuda {

DirectDispatcher::DirectDispatcher(Group& group, const DispatcherConfig& config, const CudaOptions& options, int device)
    : CudaCollective(group, config, options, device) {
  const auto error = attempt([&] {
    if (options.mover != CudaMover::kCopyEngines) return;
    copy_engines_ = std::make_unique<CopyEngines>(layout(), this->rank(), device, shares_gpu());
  });
  // The mover may differ by rank, so all of them come here.
  agree(this->group(), error, "taking the copy engines' memory");
}

void DirectDispatcher::start_move(const CudaHandleState& handle, MoveArgs& args) {
  const TuningQuery query =
      tuning_query(args.behind_prepare ? TunedCall::kColdDispatch : TunedCall::kDispatch, handle.stats.num_tokens);
  const bool is_dispatch = args.target == BufferSection::kReceiveRows;
  if (copy_engines_ != nullptr && is_dispatch && copy_engines_->dispatch(handle, args, pack_blocks(query), stream())) {
    return;
  }
  const TuningChoice choice = choose(query);
  args.tuning = {.num_blocks = choice.num_blocks, .remote_blocks = choice.peer_blocks, .bulk = choice.bulk};
  check_cuda(launch_move(args, stream()), "launching dispatch");
}

void DirectDispatcher::start_sum(const CudaHandleState& handle, SumArgs& args) {
  const TuningChoice choice = choose(tuning_query(TunedCall::kCombine, handle.stats.num_tokens));
  args.tuning = {.num_blocks = choice.num_blocks, .push_blocks = choice.peer_blocks, .bulk = choice.bulk};
  check_cuda(launch_sum(args, stream()), "launching combine");
}

}  // namespace epistle::cuda
