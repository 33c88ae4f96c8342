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
      if (facts[other].rank == facts[peer].rank) continue;
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

/// A rank of another host in the domain of an earlier one; -1 where domains keep to hosts.
int find_spanning_rank(std::span<const HeapFacts> facts) {
  for (std::size_t peer = 1; peer < facts.size(); ++peer) {
    if (facts[peer].domain == facts[peer - 1].domain && facts[peer].host != facts[peer - 1].host) {
      return static_cast<int>(peer);
    }
  }
  return -1;
}

const char* lack_of(const HeapFacts& device, CudaHeapChoice choice) {
  if (!device.virtual_memory) return "virtual memory management";
  return choice == CudaHeapChoice::kFabric ? "memory that is exported as a fabric handle"
                                           : "memory that is exported as a file descriptor";
}

/// Throws where the memory of `spanning`, which is on another host than the rank before it, cannot cross.
void check_spanning_domain(std::span<const HeapFacts> facts, CudaHeapChoice choice, int spanning, int rank) {
  constexpr const char* kAdvice =
      "EPISTLE_NVLINK_FABRIC=none keeps domains to hosts, for the dispatchers that join them (hybrid, alltoall)";
  if (choice != CudaHeapChoice::kAuto && choice != CudaHeapChoice::kFabric) {
    throw Error(ErrorCode::kUnsupported,
                fmt::format("ranks {} and {} are on two hosts of one NVLink fabric, where memory travels as fabric "
                            "handles, and EPISTLE_CUDA_HEAP is {}; use auto or fabric. {}",
                            spanning - 1, spanning, to_string(choice), kAdvice),
                at(rank, static_cast<std::size_t>(spanning)));
  }
  for (std::size_t peer = 0; peer < facts.size(); ++peer) {
    if (facts[peer].virtual_memory && facts[peer].fabric) continue;
    throw Error(ErrorCode::kUnsupported,
                fmt::format("ranks {} and {} are on two hosts of one NVLink fabric, but device {} of rank {} lacks {}; "
                            "configure nvidia-imex. {}",
                            spanning - 1, spanning, facts[peer].device, peer,
                            lack_of(facts[peer], CudaHeapChoice::kFabric), kAdvice),
                at(rank, peer));
  }
}

}  // namespace

HeapKind choose_heap_kind(std::span<const HeapFacts> facts, GroupKind group_kind, int rank) {
  const bool processes = group_kind == GroupKind::kProcesses;
  check_sizes(facts, rank);
  if (processes) check_devices_differ(facts, rank);
  CudaHeapChoice choice = common_choice(facts, rank);
  const int spanning = processes ? find_spanning_rank(facts) : -1;
  if (spanning >= 0) {
    check_spanning_domain(facts, choice, spanning, rank);
    return HeapKind::kVmmFabric;
  }
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
                          to_string(choice), unable->device, peer, lack_of(*unable, choice)),
              at(rank, peer));
}

}  // namespace epistle::cuda
