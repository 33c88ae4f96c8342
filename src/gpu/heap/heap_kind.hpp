// Which way of sharing memory a group's GPUs take. A pure function of what every rank knows, so all ranks decide alike.
#pragma once

#include <cstdint>
#include <span>

#include "epistle/types.hpp"

#include "core/settings.hpp"
#include "gpu/device_uuid.hpp"

namespace epistle::cuda {

enum class HeapKind : std::int32_t {
  kVmmFd,      ///< virtual memory functions; between processes, memory travels as file descriptors
  kVmmFabric,  ///< the same with fabric handles
  kIpc,        ///< one cudaMalloc per rank; between processes, CUDA IPC
};

/// What a rank tells the others before a heap is made.
struct HeapFacts {
  int rank = 0;  ///< whose facts these are: those of a rank that is masked out are another's
  int device = 0;
  int host = 0;    ///< of the group's
  int domain = 0;  ///< of GPUs: those of one domain reach each other, over hosts by an NVLink fabric
  DeviceUuid uuid{};
  CudaHeapChoice choice = CudaHeapChoice::kAuto;
  bool virtual_memory = false;
  bool posix_fd = false;
  bool fabric = false;
  std::int64_t reserved_bytes = 0;
  std::int64_t granularity_bytes = 0;
};

/// Facts by rank; `rank` is the one that asks. Throws kShapeMismatch where ranks disagree, kUnsupported where a device
/// cannot do what the setting EPISTLE_CUDA_HEAP asks for, or what a domain over several hosts needs, or processes share
/// a GPU. All kinds are alike between threads: fabric handles and descriptors are not needed there, and virtual memory
/// is kVmmFd. Of ranks in one domain that are on several hosts it is kVmmFabric: nothing else crosses.
[[nodiscard]] HeapKind choose_heap_kind(std::span<const HeapFacts> facts, GroupKind group_kind, int rank);

}  // namespace epistle::cuda
