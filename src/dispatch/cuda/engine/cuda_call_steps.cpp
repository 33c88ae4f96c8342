// CudaEngine: what every call begins with. It chooses stream and SMs, looks for what the device has found, and
// announces the call, or refuses it.
#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "dispatch/cuda/engine/cuda_engine.hpp"
#include "gpu/cuda_error.hpp"

namespace epistle::cuda {

std::string_view CudaEngine::open_call_name() const noexcept {
  if (open_.call == DeviceCall::kNone) return {};
  return open_.call == DeviceCall::kDispatch ? "dispatch" : "combine";
}

std::shared_ptr<CudaHandleState> CudaEngine::own_handle(const std::shared_ptr<HandleState>& state, Phase phase,
                                                        Complaint& complaint) const {
  const bool is_own = state != nullptr && owns(*state);
  if (!complaint) complaint = checks().handle(state.get(), is_own, open_call_name(), phase);
  return complaint ? nullptr : std::static_pointer_cast<CudaHandleState>(state);
}

void CudaEngine::use(Stream stream) {
  if (stream.get() != context_.stream) {
    // What is behind on the other stream is remembered: nobody asks that one again.
    static_cast<void>(last_work());
    context_.stream = stream.get();
  }
  was_captured_ = was_captured_ || is_capturing();
}

Complaint CudaEngine::begin_call(Stream stream, int num_sms, Phase phase) {
  use(stream);
  follow_mask();
  context_.num_sms = num_sms > 0 ? num_sms : context_.options.num_sms;
  Complaint complaint = checks().device_options(stream, num_sms, phase);
  if (!transport_->agrees_on_host()) {
    check_findings();
    return complaint;
  }
  if (is_capturing()) {
    return complain(ErrorCode::kUnsupported, Phase::kNone,
                    fmt::format("the stream is being captured, but dispatcher '{}' needs the host in every call; use "
                                "direct with capacity sizing",
                                identity().info->name()));
  }
  try {
    // The counts of every handle, under capacity sizing too; the same handles on all ranks.
    for (const auto& handle : handles_) {
      if (!handle->finished) wait_for_summary(*handle);
    }
    check_findings();
  } catch (const Error& error) {
    // What ends the group, all ranks throw; the rest is told to them.
    group_->check_usable();
    return error;
  }
  return complaint ? complaint : transport_->find_broken();
}

DeviceCall CudaEngine::announce_call(DeviceCall call, const CudaHandleState* handle, const Complaint& complaint) {
  if (transport_->agrees_on_host()) return agree_on_host(call, handle, complaint);
  if (!complaint) return call;
  // The others are in the call whose receive half is still to come, and wait for nothing else.
  if (open_.call != DeviceCall::kNone) throw Error(*complaint);
  refuse(call, *complaint);
}

DeviceCall CudaEngine::agree_on_host(DeviceCall call, const CudaHandleState* handle, const Complaint& complaint) {
  const auto prepare_id = handle != nullptr ? static_cast<std::uint32_t>(handle->prepare_id) : 0;
  const std::uint64_t own = call_word(0, complaint ? DeviceCall::kRejected : call, prepare_id);
  const Phase phase = phase_of(call);
  // Finds ranks that make no call of a dispatcher; calls of dispatchers are compared below.
  const std::vector<std::uint64_t> words = group_->gather({.kind = CallKind::kGpuCall}, phase, own);
  if (complaint) throw Error(*complaint);
  const Verdict verdict = judge(words.data(), context_.num_ranks(), context_.rank());
  if (verdict.outcome != Verdict::Outcome::kAgreed) throw Error(to_error(verdict, context_.rank(), phase));
  const auto definite = std::find_if_not(words.begin(), words.end(), takes_any_weights);
  return definite != words.end() ? epistle::cuda::call_of(*definite) : call;
}

void CudaEngine::refuse(DeviceCall call, const Error& complaint, const HandleTotals* behind) {
  const RefuseArgs args{.group = context_.device_group, .phase = phase_of(call), .behind = behind};
  check_cuda(launch_refuse(args, context_.stream), "telling the peers of a refusal");
  throw Error(complaint);
}

}  // namespace epistle::cuda
