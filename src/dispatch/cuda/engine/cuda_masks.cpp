// CudaEngine where the mask of its group has changed: what the ranks share is made anew.
//
// A rank that is left out may be alive, and its kernels may write to where they were told to for as long as they run:
// signals, rows, and lines to places that others use by then. So nothing is used again that it can reach. In the new
// memory every rank speaks to itself for those that are left out (DeviceGroup::voice_to), and no kernel waits for one.
#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "dispatch/cuda/engine/cuda_engine.hpp"
#include "gpu/cuda_error.hpp"

namespace epistle::cuda {

void CudaEngine::check_can_renew() const {
  if (context_.options.row_flags) {
    throw complain(
        ErrorCode::kUnsupported, Phase::kNone,
        "nobody raises the flags of rows (CudaOptions::row_flags) of a rank that is left out, and kernels may "
        "wait for them; make another dispatcher, without flags");
  }
  if (!transport_->agrees_on_host()) return;
  throw complain(ErrorCode::kUnsupported, Phase::kNone,
                 fmt::format("dispatcher '{}' on cuda waits for all ranks, and the mask of the group was changed after "
                             "it was made; its memory is as the calls before have left it: make another one when all "
                             "ranks take part again, or take one whose Capabilities::masks says so",
                             identity().info->name()));
}

void CudaEngine::renew() {
  const std::uint64_t version = group_->mask_version();
  group_->check_usable();
  check_can_renew();
  if (is_capturing()) {
    throw complain(ErrorCode::kInvalidArgument, Phase::kNone,
                   "the mask of the group was changed, and the first call after that takes memory, which cannot be "
                   "done while the stream is being captured; make one call outside of the capture first, on all ranks");
  }
  // Who gives memory back may wait for the GPU, and ranks may share one: no kernel may wait for this rank by then.
  (void)group_->agree(kGpuSetUp, Phase::kCreate, attempt([&] { end_former_calls(); }));
  put_memory_away();
  take_memory();
  compare_placements();
  mask_version_ = version;
}

void CudaEngine::end_former_calls() {
  auto* control = reinterpret_cast<volatile HostControl*>(host_control_.get());
  control->abort = 1;
  // On the stream before this one, and on this one.
  last_work_.wait("waiting for calls from before the mask was changed");
  check_cuda(cudaStreamSynchronize(context_.stream), "waiting for calls from before the mask was changed");
  control->report.finding = 0;
  control->refused.finding = 0;
  control->abort = 0;
}

void CudaEngine::put_memory_away() {
  open_ = {};
  last_handle_ = nullptr;
  dispatcher_id_ = new_dispatcher_id();
  for (const auto& handle : handles_) {
    // Of rows that are still leased somebody may want to know how many there are.
    if (!handle->finished && (handle->is_complete() || handle->has_passed_on_device())) handle->finish();
    handle->detach();
  }
  buffers_ = {};
  const bool graphs_know_it = std::exchange(was_captured_, false);
  // A graph from before is not to run any more. Where it does all the same, its kernels find that and do nothing.
  if (graphs_know_it && local_memory_ != nullptr) {
    const auto failed = static_cast<std::uint32_t>(Finding::kAborted);
    check_cuda(cudaMemcpy(&context_.device_group.local->failed, &failed, sizeof(failed), cudaMemcpyHostToDevice),
               "stopping graphs from before the mask was changed");
  }
  former_memory_.push_back(
      {std::move(context_.heap), std::move(local_memory_), std::exchange(handles_, {}), graphs_know_it});
  // Memory is given back here only, where all ranks wait for each other on the host, and not with the last lease:
  // giving it back may wait for the device.
  std::erase_if(former_memory_, [](const FormerMemory& former) { return !former.is_used(); });
  std::fill(demands_.begin(), demands_.end(), RowDemand{});
}

bool CudaEngine::FormerMemory::is_used() const noexcept {
  return graphs_know_it || heap.use_count() > 1 ||
         std::any_of(handles.begin(), handles.end(), [](const auto& handle) { return handle.use_count() > 1; });
}

void CudaEngine::compare_placements() {
  differing_generation_ =
      context_.config.places_experts() ? newest_where_placements_differ(*group_, placement(), 0) : std::nullopt;
}

}  // namespace epistle::cuda
