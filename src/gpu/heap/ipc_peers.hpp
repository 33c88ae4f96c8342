// Other processes' cudaMalloc memory, opened in this one.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include <cuda_runtime_api.h>

#include "gpu/device_memory.hpp"
#include "group/group_impl.hpp"
#include "group/shared_memory.hpp"

namespace epistle::cuda {

/// Memory must not be freed while another process has it open (cudaFree leaves that undefined), and ranks let go at
/// different times. So each tells the owners, and an owner that is not told soon leaves its piece to the process's end.
class IpcPeers {
 public:
  /// Collective.
  explicit IpcPeers(GroupImpl& group);
  ~IpcPeers();
  IpcPeers(const IpcPeers&) = delete;
  IpcPeers& operator=(const IpcPeers&) = delete;

  /// The handle of `own`, this rank's piece on the current device, to be sent to the others.
  [[nodiscard]] cudaIpcMemHandle_t export_own(std::shared_ptr<AllocatedPiece> own);
  /// Opens every other rank's piece on the current device; all ranks come here, or none. Gives the address of every
  /// piece, by rank; null for a rank that is masked out.
  [[nodiscard]] std::vector<std::byte*> open_all(const std::vector<cudaIpcMemHandle_t>& handles);

 private:
  SymmetricRegion num_closed_;  ///< at the start of every rank's piece: how many other ranks have let go of its memory
  int rank_;
  int num_ranks_;
  std::vector<int> peers_;  ///< the other ranks, but for those that are masked out
  int device_ = 0;
  std::shared_ptr<AllocatedPiece> own_;
  bool shared_ = false;  ///< from here on others may have this rank's piece open
  std::vector<void*> opened_;
};

}  // namespace epistle::cuda
