#include "gpu/heap/heap_kind.hpp"

#include <algorithm>
#include <cstddef>

#include <fmt/format.h>

#include "epistle/error.hpp"

namespace epistle::cuda {
namespace {

Error::Context at(int rank, std::size_t peer) {
  return {.rank = rank, .peer_rank = static_cast<int>(peer), .phase = Phase::kCreate};
}

void check_sizes(std::span<const HeapFacts> facts, int rank) {
  for (std::size_t peer = 1; peer < facts.size(); ++peer) {
    if (facts[peer].reserved_bytes == facts[0].reserved_bytes) continue;
    throw Error(
        ErrorCode::kShapeMismatch,
        fmt::format("the size of the GPU heap differs: rank 0 reserves {} bytes, rank {} reserves {}; all ranks "
                    "must give the same configuration",
                    facts[0].reserved_bytes, peer, facts[peer].reserved_bytes),
        at(rank, peer));
  }
}

// A kernel that waits for its peers needs them on the GPU at the same time; two processes take turns there.
void check_devices_differ(std::span<const HeapFacts> facts, int rank) {
  for (std::size_t peer = 1; peer < facts.size(); ++peer) {
    for (std::size_t other = 0; other < peer; ++other) {
      if (facts[other].uuid != facts[peer].uuid || facts[other].host != facts[peer].host) continue;
      throw Error(
          ErrorCode::kUnsupported,
          fmt::format("ranks {} and {} have the same GPU (device {} and device {}): ranks of different processes "
                      "cannot share a GPU, because their kernels are not resident together; use --group "
                      "threads, or one GPU per rank",
                      other, peer, facts[other].device, facts[peer].device),
          at(rank, peer));
    }
  }
}

/// The setting of the group: ranks that leave it open follow those that do not.
CudaHeapChoice common_choice(std::span<const HeapFacts> facts, int rank) {
  CudaHeapChoice common = CudaHeapChoice::kAuto;
  std::size_t first = 0;
  for (std::size_t peer = 0; peer < facts.size(); ++peer) {
    const CudaHeapChoice choice = facts[peer].choice;
    if (choice == CudaHeapChoice::kAuto || choice == common) continue;
    if (common != CudaHeapChoice::kAuto) {
      throw Error(ErrorCode::kShapeMismatch,
                  fmt::format("EPISTLE_CUDA_HEAP differs: rank {} has {}, rank {} has {}; set it alike on all ranks",
                              first, to_string(common), peer, to_string(choice)),
                  at(rank, peer));
    }
    common = choice;
    first = peer;
  }
  return common;
}

}  // namespace

HeapKind choose_heap_kind(std::span<const HeapFacts> facts, GroupKind group_kind, int rank) {
  const bool processes = group_kind == GroupKind::kProcesses;
  check_sizes(facts, rank);
  if (processes) check_devices_differ(facts, rank);
  CudaHeapChoice choice = common_choice(facts, rank);
  if (choice == CudaHeapChoice::kIpc) return HeapKind::kIpc;
  if (choice == CudaHeapChoice::kFabric && !processes) choice = CudaHeapChoice::kFd;

  const auto is_able = [&](const HeapFacts& device) {
    if (!device.virtual_memory) return false;
    if (!processes) return true;
    return choice == CudaHeapChoice::kFabric ? device.fabric : device.posix_fd;
  };
  const auto unable = std::find_if_not(facts.begin(), facts.end(), is_able);
  if (unable == facts.end()) return choice == CudaHeapChoice::kFabric ? HeapKind::kVmmFabric : HeapKind::kVmmFd;
  if (choice == CudaHeapChoice::kAuto) return HeapKind::kIpc;
  const auto peer = static_cast<std::size_t>(unable - facts.begin());
  throw Error(ErrorCode::kUnsupported,
              fmt::format("EPISTLE_CUDA_HEAP is {}, but device {} of rank {} lacks {}; use EPISTLE_CUDA_HEAP=auto",
                          to_string(choice), unable->device, peer,
                          !unable->virtual_memory             ? "virtual memory management"
                          : choice == CudaHeapChoice::kFabric ? "memory that is exported as a fabric handle"
                                                              : "memory that is exported as a file descriptor"),
              at(rank, peer));
}

}  // namespace epistle::cuda
