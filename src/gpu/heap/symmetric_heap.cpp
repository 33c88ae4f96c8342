#include "gpu/heap/symmetric_heap.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <iterator>
#include <limits>
#include <optional>
#include <string_view>
#include <utility>

#include <fcntl.h>

#include <fmt/format.h>

#include "core/settings.hpp"
#include "gpu/cuda_error.hpp"
#include "gpu/device_uuid.hpp"
#include "gpu/heap/memory_budget.hpp"
#include "gpu/stream.hpp"

namespace epistle::cuda {
namespace {

/// What a rank tells the others once its own piece exists.
struct PieceFacts {
  std::uint64_t piece_id = 0;       ///< thread groups
  cudaIpcMemHandle_t ipc_handle{};  ///< process groups with HeapKind::kIpc
};

/// Collective: goes on where what every rank is about to take from its GPU is there.
template <typename Check>
void claim_memory(GroupImpl& group, const HeapFacts& own, const Check& bytes_needed) {
  DeviceClaim claim{.uuid = own.uuid, .device = own.device};
  const auto error = attempt([&] {
    claim.needed_bytes = bytes_needed();
    claim.available_bytes = free_device_bytes(own.device);
  });
  std::vector<DeviceClaim> claims = group.gather(kGpuSetUp, Phase::kCreate, claim, error);
  for (const int masked : group.masked_ranks()) claims[static_cast<std::size_t>(masked)].needed_bytes = 0;
  if (const auto shortage = find_shortage(claims, group.rank(), "the GPU heap")) throw Error(*shortage);
}

/// The UUIDs of the devices that this process sees.
std::vector<DeviceUuid> visible_uuids() {
  int num_devices = 0;
  check_cuda(cudaGetDeviceCount(&num_devices), "cudaGetDeviceCount");
  std::vector<DeviceUuid> uuids;
  for (int device = 0; device < num_devices; ++device) uuids.push_back(uuid_of(device));
  return uuids;
}

/// FNV-1a over the ranges: lists that differ would make ranks wait for different exchanges.
std::uint64_t fingerprint_of(std::span<const HeapRange> ranges) {
  constexpr std::uint64_t kFnvOffset = 0xcbf29ce484222325;
  constexpr std::uint64_t kFnvPrime = 0x100000001b3;
  std::uint64_t hash = kFnvOffset;
  const auto add = [&](std::int64_t value) { hash = (hash ^ static_cast<std::uint64_t>(value)) * kFnvPrime; };
  for (const HeapRange& range : ranges) {
    add(range.rank);
    add(range.offset);
    add(range.num_bytes);
  }
  return hash;
}

UniqueFd open_placeholder() {
  UniqueFd file = own_descriptor(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  if (!file.valid()) {
    throw Error(ErrorCode::kSystem, fmt::format("/dev/null cannot be opened: {}", std::strerror(errno)));
  }
  return file;
}

std::vector<HeapRange> ranges_of(std::span<const HeapRange> ranges, int rank) {
  std::vector<HeapRange> found;
  std::copy_if(ranges.begin(), ranges.end(), std::back_inserter(found),
               [rank](const HeapRange& range) { return range.rank == rank; });
  return found;
}

}  // namespace

// ---- Creation -------------------------------------------------------------------------------------------------------

SymmetricHeap::SymmetricHeap(GroupImpl& group, int device, std::int64_t reserved_bytes)
    : group_(&group), rank_(group.rank()), device_(device) {
  const auto num_ranks = static_cast<std::size_t>(group.num_ranks());
  bases_.resize(num_ranks, nullptr);
  pieces_.resize(num_ranks);
  std::optional<DeviceGuard> guard;
  HeapFacts own_facts;
  const auto facts_error = attempt([&] {
    guard.emplace(device_);
    own_facts = gather_facts(reserved_bytes);
  });
  facts_ = group.gather(kGpuSetUp, Phase::kCreate, own_facts, facts_error);
  kind_ = choose_heap_kind(facts_, group.kind(), rank_);
  check_kind();
  for (const HeapFacts& facts : facts_) granularity_bytes_ = std::max(granularity_bytes_, facts.granularity_bytes);
  reserved_bytes_ = (reserved_bytes + granularity_bytes_ - 1) / granularity_bytes_ * granularity_bytes_;
  if (is_process_group()) {
    accessing_devices_ = {device_};
  } else {
    for (const HeapFacts& facts : facts_) accessing_devices_.push_back(facts.device);
    std::sort(accessing_devices_.begin(), accessing_devices_.end());
    accessing_devices_.erase(std::unique(accessing_devices_.begin(), accessing_devices_.end()),
                             accessing_devices_.end());
  }
  if (kind_ == HeapKind::kIpc && is_process_group()) ipc_peers_ = std::make_unique<IpcPeers>(group);
  share_pieces();
}

HeapFacts SymmetricHeap::gather_facts(std::int64_t reserved_bytes) {
  constexpr std::int64_t kMaxReservedBytes = std::numeric_limits<std::int64_t>::max() / 2;  // leaves room to round up
  if (reserved_bytes <= 0 || reserved_bytes > kMaxReservedBytes) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("a GPU heap of {} bytes per rank was asked for; it must be between 1 and {}",
                            reserved_bytes, kMaxReservedBytes));
  }
  check_cuda(cudaFree(nullptr), fmt::format("the creation of a CUDA context on device {}", device_).c_str());
  const MemoryCapabilities capabilities = memory_capabilities(device_);
  return {.rank = rank_,
          .device = device_,
          .host = group_->host_of(rank_),
          .domain = group_->gpu_domains().domain_of(rank_),
          .uuid = uuid_of(device_),
          .choice = settings().cuda_heap(),
          .virtual_memory = capabilities.virtual_memory,
          .posix_fd = capabilities.posix_fd,
          .fabric = capabilities.fabric,
          .reserved_bytes = reserved_bytes,
          .granularity_bytes = mapping_granularity(device_)};
}

bool SymmetricHeap::reaches_all() const noexcept {
  for (int rank = 0; rank < group_->num_ranks(); ++rank) {
    if (!reaches(rank)) return false;
  }
  return true;
}

void SymmetricHeap::check_kind() const {
  if (kind_ != HeapKind::kIpc || group_->num_hosts() == 1) return;
  throw Error(
      ErrorCode::kUnsupported,
      fmt::format("GPU memory that goes by CUDA IPC is allocated as a whole, and a group over {} hosts needs parts "
                  "of it; use GPUs with virtual memory management, and EPISTLE_CUDA_HEAP=auto or fd",
                  group_->num_hosts()),
      {.rank = rank_, .phase = Phase::kCreate});
}

void SymmetricHeap::check_reach() const {
  const std::vector<DeviceUuid> visible = visible_uuids();
  for (int peer = 0; peer < group_->num_ranks(); ++peer) {
    if (shares_device(peer) || !reaches(peer)) continue;
    const HeapFacts& facts = facts_[static_cast<std::size_t>(peer)];
    const auto found = std::find(visible.begin(), visible.end(), facts.uuid);
    // A GPU that this process does not see (CUDA_VISIBLE_DEVICES) cannot be asked about; mapping its memory will tell.
    if (found == visible.end()) continue;
    const int peer_device = static_cast<int>(found - visible.begin());
    int can_access = 0;
    check_cuda(cudaDeviceCanAccessPeer(&can_access, device_, peer_device), "cudaDeviceCanAccessPeer");
    if (can_access == 0) {
      throw Error(ErrorCode::kUnsupported,
                  fmt::format("device {} of rank {} cannot access the memory of device {} of rank {}; use GPUs with "
                              "peer access (nvidia-smi topo -p2p r), or fewer of them",
                              device_, rank_, facts.device, peer),
                  {.rank = rank_, .peer_rank = peer, .phase = Phase::kCreate});
    }
    if (kind_ == HeapKind::kIpc && !is_process_group()) {
      const cudaError_t status = cudaDeviceEnablePeerAccess(peer_device, 0);
      if (status == cudaErrorPeerAccessAlreadyEnabled) {
        (void)cudaGetLastError();  // another rank on this device was first: no error
      } else {
        check_cuda(status, fmt::format("cudaDeviceEnablePeerAccess({}) on device {}", peer_device, device_).c_str());
      }
    }
  }
}

void SymmetricHeap::create_own_piece() {
  std::shared_ptr<DevicePiece> own;
  if (kind_ == HeapKind::kIpc) {
    own = std::make_shared<AllocatedPiece>(reserved_bytes_);
  } else {
    own = std::make_shared<VirtualPiece>(reserved_bytes_);
  }
  bases_[static_cast<std::size_t>(rank_)] = own->base();
  pieces_[static_cast<std::size_t>(rank_)] = std::move(own);
}

void SymmetricHeap::share_pieces() {
  struct Registration {
    Registration() = default;
    ~Registration() { PieceRegistry::instance().remove(id); }
    Registration(const Registration&) = delete;
    Registration& operator=(const Registration&) = delete;
    std::uint64_t id = 0;  ///< 0 = none yet, which no piece has
  } registration;
  PieceFacts own_facts;
  claim_memory(*group_, facts_[static_cast<std::size_t>(rank_)],
               [&] { return kind_ == HeapKind::kIpc ? reserved_bytes_ : 0; });
  const auto own_error = attempt([&] {
    check_reach();
    create_own_piece();
    const std::shared_ptr<DevicePiece>& own = pieces_[static_cast<std::size_t>(rank_)];
    if (ipc_peers_) {
      own_facts.ipc_handle = ipc_peers_->export_own(std::static_pointer_cast<AllocatedPiece>(own));
    } else if (!is_process_group()) {
      registration.id = PieceRegistry::instance().add(own);
      own_facts.piece_id = registration.id;
    }
  });
  const std::vector<PieceFacts> facts = group_->gather(kGpuSetUp, Phase::kCreate, own_facts, own_error);

  const auto share_error = attempt([&] {
    if (ipc_peers_) {
      std::vector<cudaIpcMemHandle_t> handles;
      for (const PieceFacts& peer_facts : facts) handles.push_back(peer_facts.ipc_handle);
      bases_ = ipc_peers_->open_all(handles);
      return;
    }
    for (int peer = 0; peer < group_->num_ranks(); ++peer) {
      if (peer == rank_ || group_->is_masked(peer)) continue;
      const auto idx = static_cast<std::size_t>(peer);
      pieces_[idx] = is_process_group() ? std::make_shared<VirtualPiece>(reserved_bytes_)
                                        : PieceRegistry::instance().find(facts[idx].piece_id);
      if (pieces_[idx] == nullptr) {
        throw Error(ErrorCode::kSystem, fmt::format("rank {} gave its GPU heap up while it was shared", peer),
                    {.rank = rank_, .peer_rank = peer, .phase = Phase::kCreate});
      }
      bases_[idx] = pieces_[idx]->base();
    }
  });
  // Also keeps every rank's registration until the others have found it.
  (void)group_->agree(kGpuSetUp, Phase::kCreate, share_error);
}

// ---- Commit ---------------------------------------------------------------------------------------------------------

/// What a commit has made so far; given back unless it succeeds.
struct SymmetricHeap::Staged {
  std::vector<PhysicalMemory> memory;  ///< this rank's, kept until its peers have imported it
  std::vector<UniqueFd> files;         ///< one per exchange
  std::vector<CUmemFabricHandle> fabric_handles;
  std::vector<std::pair<int, MappedMemory>> mapped;  ///< with the rank whose piece it lies in
};

CUmemAllocationHandleType SymmetricHeap::handle_type() const noexcept {
  if (!is_process_group()) return CU_MEM_HANDLE_TYPE_NONE;
  return kind_ == HeapKind::kVmmFabric ? CU_MEM_HANDLE_TYPE_FABRIC : CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
}

void SymmetricHeap::check_ranges(std::span<const HeapRange> ranges) const {
  const auto reject = [&](const HeapRange& range, std::string_view why) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("cannot commit {} bytes at {} of rank {}'s GPU heap: {}", range.num_bytes, range.offset,
                            range.rank, why),
                {.rank = rank_, .phase = Phase::kCreate});
  };
  const auto overlap = [](const HeapRange& one, const HeapRange& other) {
    return one.rank == other.rank && one.offset < other.offset + other.num_bytes &&
           other.offset < one.offset + one.num_bytes;
  };
  for (std::size_t idx = 0; idx < ranges.size(); ++idx) {
    const HeapRange& range = ranges[idx];
    if (range.rank < 0 || range.rank >= group_->num_ranks()) reject(range, "there is no such rank");
    if (range.offset < 0 || range.num_bytes <= 0 || range.num_bytes > reserved_bytes_ ||
        range.offset > reserved_bytes_ - range.num_bytes) {
      reject(range, fmt::format("it has {} bytes", reserved_bytes_));
    }
    if (range.offset % granularity_bytes_ != 0 || range.num_bytes % granularity_bytes_ != 0) {
      reject(range, fmt::format("both must be multiples of {}", granularity_bytes_));
    }
    if (base(range.rank) == nullptr) reject(range, "the rank was masked out when the heap was made");
    const auto overlaps = [&](const HeapRange& other) { return overlap(range, other); };
    const auto earlier = ranges.first(idx);
    if (std::any_of(committed_.begin(), committed_.end(), overlaps) ||
        std::any_of(earlier.begin(), earlier.end(), overlaps)) {
      reject(range, "some of it is committed already");
    }
  }
}

void SymmetricHeap::stage_own(std::span<const HeapRange> ranges, Staged& staged) {
  const bool shares_files = kind_ == HeapKind::kVmmFd && is_process_group();
  cudaStream_t stream = private_stream(device_);
  for (const HeapRange& range : ranges_of(ranges, rank_)) {
    std::byte* const address = base(rank_) + range.offset;
    if (kind_ != HeapKind::kIpc) {
      const PhysicalMemory& memory = staged.memory.emplace_back(device_, range.num_bytes, handle_type());
      staged.mapped.emplace_back(rank_, MappedMemory(address, memory, accessing_devices_));
      if (shares_files) staged.files.push_back(memory.export_fd());
      if (kind_ == HeapKind::kVmmFabric) staged.fabric_handles.push_back(memory.export_fabric_handle());
    }
    check_cuda(cudaMemsetAsync(address, 0, static_cast<std::size_t>(range.num_bytes), stream),
               fmt::format("cudaMemsetAsync of {} bytes", range.num_bytes).c_str());
  }
  stage_mirrors(ranges, staged);
  check_cuda(cudaStreamSynchronize(stream), "cudaStreamSynchronize after the zero-fill of GPU memory");
  // A rank with fewer ranges than others takes part in every exchange all the same.
  std::size_t max_ranges = 0;
  for (int peer = 0; peer < group_->num_ranks(); ++peer) {
    max_ranges = std::max(max_ranges, ranges_of(ranges, peer).size());
  }
  while (shares_files && staged.files.size() < max_ranges) staged.files.push_back(open_placeholder());
  if (kind_ == HeapKind::kVmmFabric) staged.fabric_handles.resize(max_ranges);
}

void SymmetricHeap::stage_mirrors(std::span<const HeapRange> ranges, Staged& staged) {
  for (const HeapRange& range : ranges) {
    if (!range.mirrored || reaches(range.rank)) continue;
    const PhysicalMemory memory(device_, range.num_bytes, CU_MEM_HANDLE_TYPE_NONE);
    std::byte* const address = base(range.rank) + range.offset;
    staged.mapped.emplace_back(range.rank, MappedMemory(address, memory, accessing_devices_));
    check_cuda(cudaMemsetAsync(address, 0, static_cast<std::size_t>(range.num_bytes), private_stream(device_)),
               fmt::format("cudaMemsetAsync of {} bytes", range.num_bytes).c_str());
  }
}

void SymmetricHeap::stage_peer_range(const HeapRange& range, const std::function<PhysicalMemory()>& import_one,
                                     Staged& staged) const {
  try {
    staged.mapped.emplace_back(range.rank,
                               MappedMemory(base(range.rank) + range.offset, import_one(), accessing_devices_));
  } catch (const Error& error) {
    // Where this process does not see the other GPU, check_reach() could not ask whether there is a path to it.
    throw Error(
        error.code(),
        fmt::format("the memory of device {} of rank {} cannot be used on device {}: {}; use GPUs that reach each "
                    "other (nvidia-smi topo -p2p r), and let every rank see all of them (CUDA_VISIBLE_DEVICES)",
                    device_of(range.rank), range.rank, device_, error.message()),
        {.rank = rank_, .peer_rank = range.rank, .phase = Phase::kCreate});
  }
}

void SymmetricHeap::stage_peers(std::span<const HeapRange> ranges, Staged& staged) {
  std::vector<std::vector<HeapRange>> by_rank;
  for (int peer = 0; peer < group_->num_ranks(); ++peer) by_rank.push_back(ranges_of(ranges, peer));
  std::optional<Error> error;
  // Imports the `idx`-th range of every other rank; after a failure only the exchanges go on, for the others' sake.
  const auto import_all = [&](std::size_t idx, const auto& import_one) {
    for (std::size_t peer = 0; peer < by_rank.size() && !error; ++peer) {
      if (static_cast<int>(peer) == rank_ || !reaches(static_cast<int>(peer)) || idx >= by_rank[peer].size()) continue;
      const HeapRange& range = by_rank[peer][idx];
      error = attempt([&] {
        stage_peer_range(
            range, [&] { return import_one(peer, range.num_bytes); }, staged);
      });
    }
  };
  if (kind_ == HeapKind::kVmmFabric) {
    const std::size_t num_handles = staged.fabric_handles.size();
    std::vector<CUmemFabricHandle> handles(num_handles * by_rank.size());
    group_->all_gather(staged.fabric_handles.data(), num_handles * sizeof(CUmemFabricHandle), handles.data(),
                       Phase::kCreate);
    for (std::size_t idx = 0; idx < num_handles; ++idx) {
      import_all(idx, [&](std::size_t peer, std::int64_t num_bytes) {
        return PhysicalMemory::import_from(handles[peer * num_handles + idx], num_bytes);
      });
    }
  } else {
    for (std::size_t idx = 0; idx < staged.files.size(); ++idx) {
      const std::vector<UniqueFd> files = group_->exchange_fds(staged.files[idx]);
      import_all(idx, [&](std::size_t peer, std::int64_t num_bytes) {
        return PhysicalMemory::import_from(files[peer], num_bytes);
      });
    }
  }
  (void)group_->agree(kGpuSetUp, Phase::kCreate, error);
}

void SymmetricHeap::commit(std::span<const HeapRange> ranges) {
  std::optional<DeviceGuard> guard;
  Staged staged;
  claim_memory(*group_, facts_[static_cast<std::size_t>(rank_)], [&] {
    guard.emplace(device_);
    check_ranges(ranges);
    std::int64_t num_bytes = 0;
    for (const HeapRange& range : ranges) {
      const bool is_mirror = range.mirrored && !reaches(range.rank);
      if (range.rank == rank_ || is_mirror) num_bytes += range.num_bytes;
    }
    return kind_ == HeapKind::kIpc ? 0 : num_bytes;
  });
  const auto own_error = attempt([&] {
    stage_own(ranges, staged);
    committed_.reserve(committed_.size() + ranges.size());
  });
  const std::vector<std::uint64_t> fingerprints =
      group_->gather(kGpuSetUp, Phase::kCreate, fingerprint_of(ranges), own_error);
  const auto other = std::find_if(fingerprints.begin(), fingerprints.end(),
                                  [&](std::uint64_t fingerprint) { return fingerprint != fingerprints.front(); });
  if (other != fingerprints.end()) {
    const auto peer = static_cast<int>(other - fingerprints.begin());
    throw Error(
        ErrorCode::kShapeMismatch,
        fmt::format("ranks 0 and {} commit different ranges of the GPU heap; all ranks must give the same list", peer),
        {.rank = rank_, .peer_rank = peer, .phase = Phase::kCreate});
  }
  if (is_process_group() && kind_ != HeapKind::kIpc) stage_peers(ranges, staged);
  for (auto& [owner, memory] : staged.mapped) static_cast<VirtualPiece&>(piece(owner)).keep(std::move(memory));
  committed_.insert(committed_.end(), ranges.begin(), ranges.end());
}

}  // namespace epistle::cuda
