// GPU memory that every rank of a group can address: one piece per rank, of one size, committed range by range. Of
// ranks of other hosts, which are out of reach, there is a piece as well, whose memory is this rank's own: what kernels
// tell such a rank stands in that mirror, for the host to carry it across.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include <cuda_runtime_api.h>

#include "gpu/device_memory.hpp"
#include "gpu/heap/heap_kind.hpp"
#include "gpu/heap/ipc_peers.hpp"
#include "group/group_impl.hpp"

namespace epistle::cuda {

/// Bytes [offset, offset + num_bytes) of the piece of `rank`.
struct HeapRange {
  int rank = 0;
  std::int64_t offset = 0;
  std::int64_t num_bytes = 0;
  bool mirrored = false;  ///< has memory in the mirrors that ranks of other hosts have of this piece; else none
};

/// Ranks may destroy their heaps at different times. In thread groups a piece stays until the last rank has let go of
/// it. In process groups every process unmaps what it mapped, and physical memory goes with its last mapping. No kernel
/// may use the heap of a rank that destroys it.
class SymmetricHeap {
 public:
  /// Collective. Reserves at least `reserved_bytes` (equal on all ranks) of address space for every rank's piece.
  /// `device` is this rank's GPU, which nothing is committed on yet; but with HeapKind::kIpc the whole piece is.
  /// The group must outlive the heap. Throws kUnsupported where a GPU cannot reach another one's memory,
  /// and for CUDA IPC over several hosts.
  SymmetricHeap(GroupImpl& group, int device, std::int64_t reserved_bytes);
  ~SymmetricHeap() = default;
  SymmetricHeap(const SymmetricHeap&) = delete;
  SymmetricHeap& operator=(const SymmetricHeap&) = delete;

  /// This process's address of `rank`'s piece. All ranks of a thread group have the same. Null where the rank was
  /// masked out when the heap was made.
  [[nodiscard]] std::byte* base(int rank) const noexcept { return bases_[static_cast<std::size_t>(rank)]; }

  /// Collective, with the same list on all ranks. Offsets and sizes are multiples of granularity(), and nothing is
  /// committed twice. On return all of it is zero and every rank can use it. On an error on any rank all ranks throw
  /// (kPeerRejected where it was another one) and the heap keeps what it had.
  void commit(std::span<const HeapRange> ranges);

  /// Physical bytes of this rank's own piece; with HeapKind::kIpc all of it from the start.
  [[nodiscard]] std::int64_t resident_bytes() const noexcept { return piece(rank_).resident_bytes(); }
  /// The number of `rank`'s GPU, as its own process counts.
  [[nodiscard]] int device_of(int rank) const noexcept { return facts_[static_cast<std::size_t>(rank)].device; }
  /// False for ranks of other hosts, unless they are in this one's domain: base() of theirs is a mirror.
  [[nodiscard]] bool reaches(int rank) const noexcept {
    const HeapFacts& other = facts_[static_cast<std::size_t>(rank)];
    const HeapFacts& own = facts_[static_cast<std::size_t>(rank_)];
    return other.host == own.host || (kind_ == HeapKind::kVmmFabric && other.domain == own.domain);
  }
  [[nodiscard]] bool reaches_all() const noexcept;
  /// True when `rank` has the same physical GPU as this rank, as this rank itself has.
  [[nodiscard]] bool shares_device(int rank) const noexcept {
    return facts_[static_cast<std::size_t>(rank)].uuid == facts_[static_cast<std::size_t>(rank_)].uuid;
  }
  [[nodiscard]] HeapKind kind() const noexcept { return kind_; }
  [[nodiscard]] std::int64_t reserved_bytes() const noexcept { return reserved_bytes_; }

  /// The unit of commit(): the largest of all ranks' devices.
  [[nodiscard]] std::int64_t granularity() const noexcept { return granularity_bytes_; }
  /// The unit of one device.
  [[nodiscard]] static std::int64_t granularity(int device) { return mapping_granularity(device); }

 private:
  struct Staged;

  [[nodiscard]] bool is_process_group() const noexcept { return group_->kind() == GroupKind::kProcesses; }
  [[nodiscard]] DevicePiece& piece(int rank) const noexcept { return *pieces_[static_cast<std::size_t>(rank)]; }
  [[nodiscard]] CUmemAllocationHandleType handle_type() const noexcept;

  [[nodiscard]] HeapFacts gather_facts(std::int64_t reserved_bytes);
  void check_kind() const;
  void check_reach() const;
  void create_own_piece();
  void share_pieces();

  void check_ranges(std::span<const HeapRange> ranges) const;
  void stage_own(std::span<const HeapRange> ranges, Staged& staged);
  void stage_mirrors(std::span<const HeapRange> ranges, Staged& staged);
  void stage_peers(std::span<const HeapRange> ranges, Staged& staged);
  void stage_peer_range(const HeapRange& range, const std::function<PhysicalMemory()>& import_one,
                        Staged& staged) const;

  GroupImpl* group_;
  int rank_;
  int device_;
  std::int64_t reserved_bytes_ = 0;
  std::int64_t granularity_bytes_ = 0;
  HeapKind kind_ = HeapKind::kVmmFd;
  std::vector<HeapFacts> facts_;        ///< by rank
  std::vector<int> accessing_devices_;  ///< the GPUs that this process lets use what it maps
  std::vector<HeapRange> committed_;
  std::vector<std::byte*> bases_;                     ///< by rank
  std::vector<std::shared_ptr<DevicePiece>> pieces_;  ///< by rank; null where another process has it and IPC opened it
  std::unique_ptr<IpcPeers> ipc_peers_;               ///< goes before pieces_: it waits until they can be freed
};

}  // namespace epistle::cuda
