#include "group/cuda/heap_agreement.hpp"

#include <cstring>

#include <fmt/format.h>

namespace epistle::cuda {

std::string message_of(const Error& error) {
  const Error bare(error.code(), "", error.context());
  return std::string(error.what()).substr(std::strlen(bare.what()));
}

StepStatus to_status(const std::optional<Error>& error) {
  StepStatus status;
  if (!error) return status;
  status.code = error->code();
  const std::string text = fmt::format("{}: {}", to_string(error->code()), message_of(*error));
  std::strncpy(status.message.data(), text.c_str(), status.message.size() - 1);
  return status;
}

void check_step(const GroupImpl& group, const std::optional<Error>& own_error, const std::vector<StepStatus>& statuses,
                std::string_view step) {
  if (own_error) {
    // Errors of CUDA calls do not know the rank yet.
    if (own_error->context().rank >= 0) throw Error(*own_error);
    throw Error(own_error->code(), message_of(*own_error), {.rank = group.rank(), .phase = Phase::kCreate});
  }
  for (std::size_t peer = 0; peer < statuses.size(); ++peer) {
    if (statuses[peer].code == ErrorCode::kOk) continue;
    const bool lacks_memory = statuses[peer].code == ErrorCode::kOutOfMemory;
    throw Error(
        lacks_memory ? ErrorCode::kOutOfMemory : ErrorCode::kPeerRejected,
        fmt::format("rank {} failed in {} ({}); nothing was changed", peer, step, statuses[peer].message.data()),
        {.rank = group.rank(), .peer_rank = static_cast<int>(peer), .phase = Phase::kCreate});
  }
}

void agree(GroupImpl& group, const std::optional<Error>& error, std::string_view step) {
  struct Nothing {};
  (void)agree(group, error, step, Nothing{});
}

}  // namespace epistle::cuda
