#include "dispatch/cuda/engine/call_names.hpp"

#include <algorithm>
#include <array>
#include <cstddef>

#include <fmt/format.h>

namespace epistle::cuda {

std::string_view name_of(DeviceCall call) noexcept {
  constexpr std::array<std::string_view, static_cast<std::size_t>(DeviceCall::kNumCalls) + 1> kNames = {
      "nothing",
      "prepare",
      "dispatch with a routing of its own",
      "dispatch",
      "combine",
      "combine_backward",
      "dispatch_backward without gradients of the weights",
      "dispatch_backward with gradients of the weights",
      "dispatch_backward",
      "a call that it rejected",
      "an unknown call"};
  return kNames[std::min(static_cast<std::size_t>(call), kNames.size() - 1)];
}

Phase phase_of(DeviceCall call) noexcept {
  switch (call) {
    case DeviceCall::kPrepare:
    case DeviceCall::kPrepareAndDispatch:
      return Phase::kLayout;
    case DeviceCall::kDispatch:
      return Phase::kDispatch;
    default:
      return Phase::kCombine;
  }
}

Error to_error(const Verdict& verdict, int rank, Phase phase) {
  const Error::Context context{.rank = rank, .peer_rank = verdict.peer, .phase = phase};
  if (verdict.outcome == Verdict::Outcome::kRejected) {
    return {ErrorCode::kPeerRejected, fmt::format("rank {} rejected its input, so nothing was sent", verdict.peer),
            context};
  }
  const auto text = [](int who, std::uint64_t word) {
    const std::uint32_t handle = handle_of(word);
    return fmt::format("rank {} calls {}{}", who, name_of(call_of(word)),
                       handle != 0 ? fmt::format(" (handle {})", handle) : "");
  };
  return {ErrorCode::kShapeMismatch,
          fmt::format("{}, {}; all ranks must make the same calls in the same order; nothing was sent",
                      text(verdict.rank, verdict.word), text(verdict.peer, verdict.peer_word)),
          context};
}

}  // namespace epistle::cuda
