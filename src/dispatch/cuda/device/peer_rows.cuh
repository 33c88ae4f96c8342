// Where ranks have the rows of the call at hand. What calls receive into is there several times on every rank; each
// rank chooses for itself which copy it uses, and says so in the word that announces its call.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dispatch/cuda/device/device_types.hpp"

namespace epistle::cuda {

/// First row of one section on every rank. In shared memory, one for a block: the loops that move rows look up an
/// address, and nothing there depends on how many copies there are.
struct PeerRows {
  std::byte* begin[kMaxRanks];

  /// Own rows in the copy that this rank has chosen, those of the peers in their first one. By all threads of the
  /// block; the others see it behind the next barrier.
  __device__ void init(const DeviceGroup& group, BufferSection section, std::int32_t own_buffer) {
    for (int peer = static_cast<int>(threadIdx.x); peer < group.num_ranks; peer += static_cast<int>(blockDim.x)) {
      begin[peer] = group.section(peer, section, peer == group.rank ? own_buffer : 0);
    }
  }

  /// What a peer has announced. By the thread that wait_all_ready() calls for the peer, which is also the one that
  /// init() has used; nobody may look up the peer's rows yet. Writes nothing where there is only one copy, so that own
  /// rows can be served meanwhile.
  __device__ void follow(const DeviceGroup& group, BufferSection section, int peer, std::uint64_t word) {
    const std::int32_t buffer = buffer_of(word);
    if (buffer != 0 && peer != group.rank) begin[peer] = group.section(peer, section, buffer);
  }
};

}  // namespace epistle::cuda
