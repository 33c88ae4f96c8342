// One rank's NCCL communicator: made, used and ended without a wait that a lost peer could make endless.
#pragma once

#include <chrono>
#include <cstddef>
#include <span>

#include <cuda_runtime_api.h>

#include "gpu/nccl/nccl_library.hpp"
#include "group/group_impl.hpp"

namespace epistle::nccl {

/// What goes to one peer and comes from it in one exchange.
struct Transfer {
  int peer = 0;
  const std::byte* send = nullptr;
  std::size_t send_bytes = 0;
  std::byte* receive = nullptr;
  std::size_t receive_bytes = 0;
};

class Communicator {
 public:
  /// Collective; the current device is this rank's, and no other rank has it. Throws kPeerLost, kTimeout, kSystem with
  /// what NCCL says.
  Communicator(const NcclApi& api, GroupImpl& group);
  /// Call end() first where work may still be running; without it the communicator is aborted.
  ~Communicator();
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  /// Puts all transfers on the stream, as one group; both ends must name the same bytes. Returns when NCCL has put them
  /// there.
  void exchange(std::span<const Transfer> transfers, cudaStream_t stream, Phase phase);

  [[nodiscard]] bool is_usable() const noexcept { return comm_ != nullptr; }
  /// Ends a communicator whose work is done, on all ranks; aborts it where that takes longer than the timeout.
  void end() noexcept;
  /// Ends it at once, kernels on the device included.
  void abort() noexcept;

 private:
  [[noreturn]] void throw_failure(ncclResult_t result, Phase phase, const char* what);
  void check(ncclResult_t result, Phase phase, const char* what);
  void wait_until_done(Phase phase, const char* what);

  const NcclApi* api_;
  GroupImpl* group_;
  ncclComm_t comm_ = nullptr;
};

}  // namespace epistle::nccl
