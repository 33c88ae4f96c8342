#include "gpu/nccl/communicator.hpp"

#include <string>
#include <thread>
#include <vector>

#include <fmt/format.h>

#include "core/log.hpp"

namespace epistle::nccl {
namespace {

using Clock = std::chrono::steady_clock;

// How often a waiting host looks at its peers.
constexpr std::chrono::milliseconds kPeerLookInterval{5};

/// The id that rank 0 made, on all ranks.
ncclUniqueId share_unique_id(const NcclApi& api, GroupImpl& group) {
  ncclUniqueId own{};
  const Complaint complaint = attempt([&] {
    if (group.rank() != 0) return;
    const ncclResult_t result = api.get_unique_id(&own);
    if (result == ncclSuccess) return;
    throw Error(ErrorCode::kSystem,
                fmt::format("could not make an id for NCCL: {} (NCCL_DEBUG=WARN says more)", api.error_string(result)));
  });
  return group.gather(kGpuSetUp, Phase::kCreate, own, complaint).front();
}

}  // namespace

Communicator::Communicator(const NcclApi& api, GroupImpl& group) : api_(&api), group_(&group) {
  const ncclUniqueId id = share_unique_id(api, group);
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  const ncclResult_t result = api.comm_init_rank_config(&comm_, group.num_ranks(), id, group.rank(), &config);
  try {
    const auto error = attempt([&] { check(result, Phase::kCreate, "creating the communicator"); });
    // Every rank has one, or none uses it.
    (void)group.agree(kGpuSetUp, Phase::kCreate, error);
  } catch (const Error&) {
    abort();
    throw;
  }
}

Communicator::~Communicator() { abort(); }

void Communicator::throw_failure(ncclResult_t result, Phase phase, const char* what) {
  const char* const detail = api_->last_error(comm_);
  std::string text = fmt::format("NCCL failed in {} on rank {}: {}", what, group_->rank(), api_->error_string(result));
  if (detail != nullptr && *detail != '\0') text += fmt::format(" ({})", detail);
  text += "; NCCL_DEBUG=WARN says more, and the dispatcher direct needs no NCCL";
  // A communicator with an error is of no further use.
  abort();
  throw Error(ErrorCode::kSystem, text, {.rank = group_->rank(), .phase = phase});
}

void Communicator::check(ncclResult_t result, Phase phase, const char* what) {
  if (result == ncclInProgress) {
    wait_until_done(phase, what);
  } else if (result != ncclSuccess) {
    throw_failure(result, phase, what);
  }
}

void Communicator::wait_until_done(Phase phase, const char* what) {
  const Clock::time_point start = Clock::now();
  Clock::time_point last_look = start;
  const auto is_done = [&] {
    ncclResult_t state = ncclSuccess;
    const ncclResult_t asked = api_->comm_get_async_error(comm_, &state);
    if (asked != ncclSuccess) throw_failure(asked, phase, what);
    if (state != ncclSuccess && state != ncclInProgress) {
      // The end of a peer shows as a network error first.
      const int lost = group_->find_lost_rank();
      if (lost >= 0) {
        abort();
        group_->fail(ErrorCode::kPeerLost, phase, lost);
      }
      throw_failure(state, phase, what);
    }
    return state == ncclSuccess;
  };
  while (!is_done()) {
    std::this_thread::yield();
    const Clock::time_point now = Clock::now();
    if (now - last_look < kPeerLookInterval) continue;
    last_look = now;
    try {
      group_->check_usable();
    } catch (const Error&) {
      abort();
      throw;
    }
    const int lost = group_->find_lost_rank();
    // A rank that has left may have done its part before.
    if (lost >= 0 && !is_done()) {
      abort();
      group_->fail(ErrorCode::kPeerLost, phase, lost);
    }
    if (now - start <= group_->timeout()) continue;
    abort();
    throw Error(ErrorCode::kTimeout,
                fmt::format("NCCL did not finish {} within {} ms; raise the timeout (EPISTLE_TIMEOUT_MS) if a rank is "
                            "only slow",
                            what, group_->timeout().count()),
                {.rank = group_->rank(), .phase = phase});
  }
}

void Communicator::exchange(std::span<const Transfer> transfers, cudaStream_t stream, Phase phase) {
  constexpr const char* kWhat = "an exchange of rows";
  const auto queue = [&](ncclResult_t result) {
    // Inside a group nothing starts, so that an error is the caller's.
    if (result == ncclSuccess || result == ncclInProgress) return;
    static_cast<void>(api_->group_end());
    throw_failure(result, phase, kWhat);
  };
  const ncclResult_t started = api_->group_start();
  if (started != ncclSuccess) throw_failure(started, phase, kWhat);
  for (const Transfer& transfer : transfers) {
    if (transfer.send_bytes > 0) {
      queue(api_->send(transfer.send, transfer.send_bytes, ncclUint8, transfer.peer, comm_, stream));
    }
    if (transfer.receive_bytes > 0) {
      queue(api_->receive(transfer.receive, transfer.receive_bytes, ncclUint8, transfer.peer, comm_, stream));
    }
  }
  check(api_->group_end(), phase, kWhat);
}

void Communicator::end() noexcept {
  if (comm_ == nullptr) return;
  ncclResult_t result = api_->comm_finalize(comm_);
  const Clock::time_point start = Clock::now();
  while (result == ncclInProgress && Clock::now() - start < group_->timeout() && group_->find_lost_rank() < 0) {
    std::this_thread::yield();
    if (api_->comm_get_async_error(comm_, &result) != ncclSuccess) result = ncclInternalError;
  }
  if (result != ncclSuccess) {
    abort();
    return;
  }
  result = api_->comm_destroy(comm_);
  comm_ = nullptr;
  if (result != ncclSuccess) log_warn(fmt::format("destroying an NCCL communicator: {}", api_->error_string(result)));
}

void Communicator::abort() noexcept {
  if (comm_ == nullptr) return;
  const ncclResult_t result = api_->comm_abort(comm_);
  comm_ = nullptr;
  if (result != ncclSuccess && result != ncclInProgress) {
    log_warn(fmt::format("aborting an NCCL communicator: {}", api_->error_string(result)));
  }
}

}  // namespace epistle::nccl
