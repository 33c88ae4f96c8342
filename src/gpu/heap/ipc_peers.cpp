#include "gpu/heap/ipc_peers.hpp"

#include <atomic>
#include <chrono>
#include <cstdint>
#include <new>
#include <thread>
#include <utility>

#include <fmt/format.h>

#include "core/log.hpp"
#include "gpu/cuda_error.hpp"

namespace epistle::cuda {
namespace {

using Counter = std::atomic<std::int32_t>;

constexpr std::chrono::milliseconds kLongestWait{1000};
constexpr std::chrono::milliseconds kPollInterval{1};

// Zero-filled shared memory is the initial state of a counter.
Counter& counter_of(const SymmetricRegion& region, int rank) {
  return *std::launder(reinterpret_cast<Counter*>(region.base(rank)));
}

}  // namespace

IpcPeers::IpcPeers(GroupImpl& group)
    : num_closed_(group.create_region(static_cast<std::int64_t>(kCacheLineBytes))),
      rank_(group.rank()),
      num_ranks_(group.num_ranks()) {
  for (int rank = 0; rank < num_ranks_; ++rank) {
    if (rank != rank_ && !group.is_masked(rank)) peers_.push_back(rank);
  }
}

IpcPeers::~IpcPeers() {
  if (!shared_) return;
  int previous = device_;
  warn_cuda(cudaGetDevice(&previous), "cudaGetDevice");
  if (previous != device_) warn_cuda(cudaSetDevice(device_), "cudaSetDevice");
  for (void* const address : opened_) warn_cuda(cudaIpcCloseMemHandle(address), "cudaIpcCloseMemHandle");
  if (previous != device_) warn_cuda(cudaSetDevice(previous), "cudaSetDevice");
  for (const int peer : peers_) {
    // pairs with the acquire below
    counter_of(num_closed_, peer).fetch_add(1, std::memory_order_release);
  }
  const auto deadline = std::chrono::steady_clock::now() + kLongestWait;
  // pairs with the release above: the peers closed their mappings before they said so
  while (counter_of(num_closed_, rank_).load(std::memory_order_acquire) < static_cast<std::int32_t>(peers_.size())) {
    if (std::chrono::steady_clock::now() >= deadline) {
      own_->abandon();
      log_debug("other ranks still hold this rank's GPU memory; it is freed when the process ends");
      return;
    }
    std::this_thread::sleep_for(kPollInterval);
  }
}

cudaIpcMemHandle_t IpcPeers::export_own(std::shared_ptr<AllocatedPiece> own) {
  own_ = std::move(own);
  num_closed_.commit(0, static_cast<std::int64_t>(kCacheLineBytes));
  check_cuda(cudaGetDevice(&device_), "cudaGetDevice");
  cudaIpcMemHandle_t handle{};
  check_cuda(cudaIpcGetMemHandle(&handle, own_->base()), "cudaIpcGetMemHandle");
  return handle;
}

std::vector<std::byte*> IpcPeers::open_all(const std::vector<cudaIpcMemHandle_t>& handles) {
  shared_ = true;
  opened_.reserve(handles.size());
  std::vector<std::byte*> bases(handles.size());
  bases[static_cast<std::size_t>(rank_)] = own_->base();
  for (const int rank : peers_) {
    void* address = nullptr;
    check_cuda(cudaIpcOpenMemHandle(&address, handles[static_cast<std::size_t>(rank)], cudaIpcMemLazyEnablePeerAccess),
               fmt::format("cudaIpcOpenMemHandle of rank {}'s memory", rank).c_str());
    opened_.push_back(address);
    bases[static_cast<std::size_t>(rank)] = static_cast<std::byte*>(address);
  }
  return bases;
}

}  // namespace epistle::cuda
