// CudaEngine: waiting for the device on the host, and making errors of what the device has found.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>

#include <fmt/format.h>

#include "dispatch/cuda/engine/cuda_engine.hpp"
#include "dispatch/cuda/engine/owed_rows.hpp"
#include "gpu/cuda_error.hpp"

namespace epistle::cuda {
namespace {

using Clock = std::chrono::steady_clock;

// How often a waiting host looks at the clock, and at its peers.
constexpr int kPollsPerLook = 256;
constexpr std::chrono::milliseconds kPeerLookInterval{5};
// The device gives up by itself; the host waits a little longer before it believes that it does not.
constexpr std::chrono::milliseconds kDeviceGrace{2000};
// Asking for an event takes the driver's lock: after a while less often, so that other ranks of the process get it.
constexpr int kBusyPolls = 512;
constexpr int kLooksPerQuestion = 128;
constexpr std::chrono::microseconds kPollPause{20};

}  // namespace

cudaEvent_t CudaEngine::last_work() {
  if (!is_capturing()) last_work_.record(context_.stream);
  return last_work_.get();
}

template <typename IsDone>
void CudaEngine::wait_on_host(const CudaHandleState* state, const IsDone& is_done) {
  const auto* control = reinterpret_cast<const volatile HostControl*>(host_control_.get());
  const Clock::time_point start = Clock::now();
  Clock::time_point last_look = start;
  while (true) {
    for (int poll = 0; poll < kPollsPerLook; ++poll) {
      if (is_done()) return;
      spin_pause();
    }
    if (control->report.finding != 0) throw_finding(const_cast<const HostControl*>(control)->report, state);
    const Clock::time_point now = Clock::now();
    if (now - last_look < kPeerLookInterval) continue;
    last_look = now;
    if (const cudaError_t error = cudaPeekAtLastError(); error != cudaSuccess)
      check_cuda(error, "waiting for the device");
    if (const cudaError_t error = cudaStreamQuery(context_.stream);
        error != cudaSuccess && error != cudaErrorNotReady) {
      check_cuda(error, "waiting for the device");
    }
    const int lost = group_->find_lost_rank();
    if (lost >= 0 && !is_done()) stop_for_lost_rank(lost, state);
    if (group_->health().code == ErrorCode::kAborted) {
      reinterpret_cast<volatile HostControl*>(host_control_.get())->abort = 1;
      static_cast<void>(transport_->abandon());
      group_->check_usable();
    }
    if (now - start > group_->timeout() + kDeviceGrace) {
      static_cast<void>(transport_->abandon());
      throw complain(ErrorCode::kTimeout, Phase::kLayout,
                     fmt::format("the device did not finish within {} ms; another kernel may hold the SMs of GPU {}",
                                 (group_->timeout() + kDeviceGrace).count(), context_.device));
    }
  }
}

MissingRows CudaEngine::rows_owed_in(Phase phase, const CudaHandleState* state) const {
  return phase == Phase::kCombine ? rows_back_to(state, context_.rank()) : rows_to(state, context_.rank());
}

void CudaEngine::stop_for_lost_rank(int lost, const CudaHandleState* state) {
  // A rank that has left may have done all it had to: the device says whether it owes anything.
  const Clock::time_point start = Clock::now();
  auto* control = reinterpret_cast<volatile HostControl*>(host_control_.get());
  const cudaEvent_t work = last_work();
  while (Clock::now() - start < std::chrono::milliseconds(50)) {
    if (cudaEventQuery(work) == cudaSuccess && control->report.finding == 0) return;
  }
  control->abort = 1;
  const Phase abandoned = transport_->abandon();
  check_cuda(cudaEventSynchronize(work), "stopping the device after a rank was lost");
  control->abort = 0;
  const auto phase = control->report.finding != 0 ? static_cast<Phase>(control->report.phase) : abandoned;
  if (phase == Phase::kNone) return;
  const MissingRows missing = rows_owed_in(phase, state);
  group_->fail(ErrorCode::kPeerLost, phase, lost, &missing);
}

/// Combine waits for this rank itself only where its rows are taken as they finish.
void CudaEngine::fail_for_unmarked_rows(Phase phase) {
  try {
    group_->fail(ErrorCode::kTimeout, phase, context_.rank(), nullptr);
  } catch (const Error& error) {
    throw Error(
        error.code(),
        fmt::format("{}; combine was given rows as they finish, and some were not marked as done within {} ms: "
                    "have a kernel call mark_rows_done() for every row that the flags tell of, and leave it SMs "
                    "beside combine",
                    error.message(), group_->timeout().count()),
        error.context());
  }
}

void CudaEngine::throw_finding(const Report& report, const CudaHandleState* state) {
  const auto phase = static_cast<Phase>(report.phase);
  const int peer = report.peer;
  const MissingRows missing = rows_owed_in(phase, state);
  switch (static_cast<Finding>(report.finding)) {
    case Finding::kTimeout: {
      if (peer == context_.rank()) fail_for_unmarked_rows(phase);
      const int lost = group_->find_lost_rank();
      group_->fail(lost == peer ? ErrorCode::kPeerLost : ErrorCode::kTimeout, phase, peer, &missing);
    }
    default: {
      const int lost = group_->find_lost_rank();
      group_->check_usable();
      group_->fail(lost >= 0 ? ErrorCode::kPeerLost : ErrorCode::kTimeout, phase, lost >= 0 ? lost : peer, &missing);
    }
  }
}

/// Throws what earlier calls have found; does not wait.
void CudaEngine::check_findings() {
  group_->check_usable();
  if (is_behind_mask()) return check_can_renew();
  auto* control = reinterpret_cast<volatile HostControl*>(host_control_.get());
  if (control->report.finding != 0) {
    throw_finding(reinterpret_cast<HostControl*>(host_control_.get())->report, last_handle_.get());
  }
  throw_disagreement();
  for (const auto& handle : handles_) {
    if (handle->checked || !handle->is_complete()) continue;
    if (handle->has_passed() && !handle->has_summary()) {
      handle->checked = true;
      continue;
    }
    if (!handle->finished) handle->finish();
    check_summary(*handle);
  }
}

namespace {

Verdict to_verdict(Finding finding, std::int32_t rank, std::int32_t peer, std::int64_t a, std::int64_t b) {
  return {.outcome = finding == Finding::kPeerRejected ? Verdict::Outcome::kRejected : Verdict::Outcome::kMismatch,
          .rank = rank,
          .peer = peer,
          .word = static_cast<std::uint64_t>(a),
          .peer_word = static_cast<std::uint64_t>(b)};
}

}  // namespace

/// Throws where the ranks did not agree on an earlier call.
void CudaEngine::throw_disagreement() {
  auto* control = reinterpret_cast<HostControl*>(host_control_.get());
  // pairs with the fence of report_call(): the finding is written last
  std::atomic_ref<std::uint32_t> finding(control->refused.finding);
  if (finding.load(std::memory_order_acquire) == 0) return;
  const Report report = control->refused;
  finding.store(0, std::memory_order_release);
  if (open_.call != DeviceCall::kNone && report.send_half == num_send_halves_) end_open_call();
  throw Error(to_error(to_verdict(static_cast<Finding>(report.finding), report.rank, report.peer, report.a, report.b),
                       context_.rank(), static_cast<Phase>(report.phase)));
}

void CudaEngine::wait() {
  const DeviceGuard guard(context_.device);
  if (is_capturing()) {
    throw complain(ErrorCode::kInvalidArgument, Phase::kNone, "the stream is being captured and cannot be waited for");
  }
  if (is_behind_mask()) {
    // The calls so far ended with the change of the mask.
    check_findings();
    return end_former_calls();
  }
  const cudaEvent_t work = last_work();
  int num_polls = 0;
  wait_on_host(last_handle_.get(), [&] {
    if (cudaEventQuery(work) == cudaSuccess) return true;
    if (++num_polls > kBusyPolls) std::this_thread::sleep_for(kPollPause);
    return false;
  });
  check_findings();
}

// ---- Summaries ------------------------------------------------------------------------------------------------------

void CudaEngine::wait_for_summary(CudaHandleState& state) {
  if (state.finished) {
    // Once more, after a graph has run prepare again.
    state.finish();
    state.checked = false;
    return;
  }
  if (is_capturing()) {
    throw complain(ErrorCode::kInvalidArgument, Phase::kLayout,
                   "the stream is being captured, so the host cannot wait for counts; use capacity sizing and read the "
                   "counts after the graph has run");
  }
  wait_until_complete(state);
  state.finish();
}

void CudaEngine::wait_until_complete(CudaHandleState& state) {
  // Asking the device takes a hundred times as long as looking whether it has told.
  int num_looks = 0;
  wait_on_host(&state, [&] {
    if (state.is_complete()) return true;
    return num_looks++ % kLooksPerQuestion == kLooksPerQuestion - 1 && state.has_passed_on_device();
  });
}

bool CudaEngine::settle_passed() {
  const auto is_open = [](const CudaHandleState& handle) {
    return handle.is_left_on_device && !handle.checked && !handle.finished && !handle.is_complete();
  };
  std::uint64_t first = num_prepared_;
  for (const auto& handle : handles_) {
    if (is_open(*handle)) first = std::min(first, handle->prepare_id);
  }
  // Asking takes as long as two calls. Of the one in the middle, which the device has done long ago: it works through
  // the calls in their order, so those before it have passed as well, or have told what they found.
  const std::uint64_t middle = first + (num_prepared_ - first) / 2;
  CudaHandleState* asked = nullptr;
  for (const auto& handle : handles_) {
    const bool is_nearer = asked == nullptr || handle->prepare_id > asked->prepare_id;
    if (is_open(*handle) && handle->prepare_id <= middle && is_nearer) asked = handle.get();
  }
  if (asked == nullptr || !asked->has_passed_on_device()) return false;
  for (const auto& handle : handles_) {
    if (is_open(*handle) && handle->prepare_id <= asked->prepare_id) handle->checked = true;
  }
  return true;
}

void CudaEngine::check_summary(CudaHandleState& state) {
  if (state.checked) return;
  state.checked = true;
  const Summary& summary = *state.summary;
  const auto finding = static_cast<Finding>(summary.finding);
  if (finding == Finding::kNone) return;
  const Error::Context context{.rank = context_.rank(), .peer_rank = summary.peer, .phase = Phase::kLayout};
  const std::int64_t token = summary.a / std::max(1, context_.config.top_k);
  const std::int64_t position = summary.a % std::max(1, context_.config.top_k);
  switch (finding) {
    case Finding::kBadId:
      throw complain(ErrorCode::kInvalidArgument, Phase::kLayout,
                     fmt::format("expert id {} at token {}, position {}; ids go from 0 to {}, and -1 means no expert",
                                 summary.b, token, position, context_.config.num_experts - 1));
    case Finding::kRepeatedId:
      throw complain(ErrorCode::kInvalidArgument, Phase::kLayout,
                     fmt::format("expert id {} stands twice in the top-k of token {} (seen at position {}); an expert "
                                 "may be chosen once per token",
                                 summary.b, token, position));
    case Finding::kPeerRejected:
    case Finding::kCallMismatch:
      throw Error(to_error(to_verdict(finding, summary.rank, summary.peer, summary.a, summary.b), context_.rank(),
                           Phase::kLayout));
    default:
      throw Error(ErrorCode::kCapacityExceeded,
                  fmt::format("rank {} would receive {} rows more than its {} {}; nothing was sent. Raise "
                              "the capacity, use exact sizing, or set the overflow policy to drop",
                              summary.peer, summary.a, context_.layout().row_limit(),
                              context_.config.layout == OutputLayout::kExpertBlocks ? "rows of expert blocks"
                                                                                    : "rows of capacity"),
                  context);
  }
}

}  // namespace epistle::cuda
