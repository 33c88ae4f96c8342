#include "gpu/heap/heap_agreement.hpp"

#include <cstring>

#include <fmt/format.h>

namespace epistle::cuda {

StepStatus to_status(const Complaint& error) {
  StepStatus status;
  if (!error) return status;
  status.code = error->code();
  const std::string text = fmt::format("{}: {}", to_string(error->code()), error->message());
  std::strncpy(status.message.data(), text.c_str(), status.message.size() - 1);
  return status;
}

void check_step(const GroupImpl& group, const Complaint& own_error, const std::vector<StepStatus>& statuses,
                std::string_view step) {
  if (own_error) {
    // Errors of CUDA calls do not know the rank yet.
    if (own_error->context().rank >= 0) throw AgreedError(*own_error);
    throw AgreedError(own_error->code(), std::string(own_error->message()),
                      {.rank = group.rank(), .phase = Phase::kCreate});
  }
  for (std::size_t peer = 0; peer < statuses.size(); ++peer) {
    if (statuses[peer].code == ErrorCode::kOk) continue;
    const bool lacks_memory = statuses[peer].code == ErrorCode::kOutOfMemory;
    throw AgreedError(
        lacks_memory ? ErrorCode::kOutOfMemory : ErrorCode::kPeerRejected,
        fmt::format("rank {} failed in {} ({}); nothing was changed", peer, step, statuses[peer].message.data()),
        {.rank = group.rank(), .peer_rank = static_cast<int>(peer), .phase = Phase::kCreate});
  }
}

void agree(GroupImpl& group, const Complaint& error, std::string_view step) {
  struct Nothing {};
  (void)agree(group, error, step, Nothing{});
}

}  // namespace epistle::cuda
