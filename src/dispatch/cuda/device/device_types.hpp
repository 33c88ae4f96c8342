// What kernels see: plain pointers and sizes. Nothing here knows of processes, groups or allocations.
#pragma once

#include <cstddef>
#include <cstdint>

#include "epistle/error.hpp"
#include "epistle/routing.hpp"
#include "epistle/types.hpp"

#include "dispatch/cuda/device/call_words.hpp"
#include "dispatch/cuda/device/device_control.hpp"
#include "layout/buffer_section.hpp"
#include "layout/replica_hash.hpp"

namespace epistle::cuda {

/// Ranks of one scale-up domain.
inline constexpr int kMaxRanks = 72;

/// Why a kernel gave up or a call was refused. The first report of a rank counts.
enum class Finding : std::uint32_t {
  kNone = 0,
  kTimeout,       ///< `peer` did not signal in time
  kAborted,       ///< the host asked to stop
  kCallMismatch,  ///< `rank` and `peer` announced different calls or handles: a = word of rank, b = of peer
  kPeerRejected,  ///< `peer` refused its input
  kBadId,         ///< a = entry of the table, b = expert id
  kRepeatedId,    ///< a = entry of the table, b = expert id
  kOverflow,      ///< `peer` would receive a rows more than fit
};

/// In host memory that the device can write.
struct Report {
  std::uint32_t finding;
  std::uint32_t phase;
  std::int32_t peer;
  std::int32_t rank;
  std::int64_t a;
  std::int64_t b;
  std::uint32_t send_half;  ///< of `refused`: number of the send half that found it, 0 = anything else
  std::uint32_t padding;
};

/// In host memory that the device can read: set to 1 to make waiting kernels give up.
struct HostControl {
  std::uint32_t abort;
  std::uint32_t padding[15];
  Report report;   ///< ends all work on the dispatcher
  Report refused;  ///< the ranks did not agree on one call; the dispatcher stays usable
};

/// What the blocks of a kernel share out among them as they go, because some SMs are slower than others.
enum WorkQueue : std::int32_t { kSentTokens, kKeptTokens, kReceivedPairs, kNumWorkQueues };

/// Thread blocks of prepare at most: every block reads the counts of all blocks of all ranks.
inline constexpr int kMaxPrepareBlocks = 16;

/// A rank's own device memory, not seen by peers.
struct LocalState {
  std::uint64_t epoch;            ///< calls completed
  std::uint32_t failed;           ///< a Finding that ends all work on this dispatcher
  std::uint32_t abandoned;        ///< epoch of the last call that the ranks did not agree on
  std::uint32_t reported;         ///< of the last one that the host was told of
  std::uint32_t blocks_left;      ///< blocks of the running call that have read its epoch and need it no more
  std::uint32_t blocks_placed;    ///< of prepare, which a dispatch may overlap
  std::uint32_t blocks_recorded;  ///< likewise
  /// By block of prepare: epoch, kPrepareAndDispatch (kRejected where the routing is void) and this rank's number of
  /// the handle, of the last one in which all rows of the block had their places.
  std::uint64_t placed[kMaxPrepareBlocks];
  std::uint32_t followed;              ///< epoch of the last dispatch that followed its prepare closely
  unsigned long long first_bad_entry;  ///< complement of the lowest refused entry of the table, 0 = none
  std::int64_t dropped;                ///< assignments of this rank that did not fit
  std::int64_t sent_remote_assignments;
  std::uint32_t queues[2][kNumWorkQueues];  ///< units taken in the running call, by the last bit of its epoch
};

/// Who says something where: what `source` says, in the memory of `rank`.
struct Voice {
  int rank;
  int source;
};

/// The ranks as one of them sees them.
struct DeviceGroup {
  std::int32_t rank = 0;
  std::int32_t num_ranks = 1;
  // Ranks that are left out. Beside what every kernel looks at first: where nobody is, that is all there is to it.
  std::int32_t num_masked = 0;
  std::uint32_t masked[(kMaxRanks + 31) / 32] = {};  ///< one bit for each rank
  std::byte* base[kMaxRanks] = {};
  std::int64_t section_offset[kNumBufferSections] = {};  ///< of the first copy
  std::int64_t section_stride[kNumBufferSections] = {};  ///< bytes from one copy to the next; 0 where there is one
  DeviceControl control;
  LocalState* local = nullptr;
  std::int32_t* outcome = nullptr;  ///< [num_ranks + num_experts] pairs that fit for each rank, drops of each expert
  HostControl* host = nullptr;
  std::uint64_t timeout_ns = 0;
  bool early_start = false;  ///< kernels may start while the one before them ends (sm_90 and later, one rank per GPU)

  [[nodiscard]] EPISTLE_HOST_DEVICE bool is_masked(int peer) const {
    return num_masked != 0 && (masked[peer / 32] >> (peer & 31) & 1U) != 0;
  }
  /// Where this rank says what it has to say to `peer`. For a rank that is left out it speaks to itself: that the other
  /// is in the same call, has nothing to send, and is done. So whoever waits waits for all ranks, and never for one
  /// that is not there.
  [[nodiscard]] EPISTLE_HOST_DEVICE Voice voice_to(int peer) const {
    return is_masked(peer) ? Voice{rank, peer} : Voice{peer, rank};
  }

  /// `buffer`: the copy, for sections that are there several times (BufferPlan::section_copies).
  [[nodiscard]] EPISTLE_HOST_DEVICE std::byte* section(int peer, BufferSection section, std::int32_t buffer = 0) const {
    const auto idx = static_cast<int>(section);
    return base[peer] + section_offset[idx] + buffer * section_stride[idx];
  }
  template <typename Value>
  [[nodiscard]] EPISTLE_HOST_DEVICE Value* control_at(int peer, std::int64_t offset) const {
    return reinterpret_cast<Value*>(section(peer, BufferSection::kControl) + offset);
  }
};

/// One row that a token sends, to a rank that holds at least one of its experts.
struct alignas(16) SendPlace {
  std::int32_t dst_rank;  ///< negative = none
  std::int32_t row;       ///< output row there; in expert layouts the first of the token's rows (in top-k order)
  std::int32_t pair;      ///< the how manieth pair that rank receives
  std::int32_t stage;     ///< row of this rank's stage that combine brings it back in; -1 at the own rank
};

/// Totals of one handle; on the device.
struct HandleTotals {
  std::uint32_t prepared;                  ///< epoch of its prepare: how all ranks call the handle
  std::uint32_t is_void;                   ///< the routing was refused, or the ranks did not agree on the prepare
  std::int32_t num_pairs;                  ///< received
  std::int32_t content_rows;               ///< output rows that carry a token
  std::int32_t num_rows;                   ///< output rows, padding included
  std::int32_t pair_begin[kMaxRanks + 1];  ///< by source
  std::int32_t stage_begin[kMaxRanks];     ///< by source: where this rank's pairs begin in the source's stage
};

/// What the host learns of a prepared handle; in host memory that the device can write, followed by
/// int32 [num_ranks, num_ranks] pairs that fit (source, destination), int32 [num_ranks] output rows of each rank,
/// int32 [num_ranks] (token, rank) pairs that each rank sends to others, and int32 [num_local_experts] rows of each
/// expert here, of a prepare only.
struct Summary {
  std::uint64_t prepare_id;  ///< which prepare this is of; written last
  std::uint64_t passed_id;   ///< the same where nothing was found and all else is left on the device
  std::uint32_t finding;
  std::int32_t peer;
  std::int32_t rank;
  std::int32_t padding;
  std::int64_t a;
  std::int64_t b;
  std::int64_t content_rows;
  std::int64_t num_rows;
  std::int64_t padding_rows;
  std::int64_t sent_remote_assignments;
  std::int64_t dropped_by_this_rank;
  std::int64_t dropped_in_group;
  std::int64_t dropped_here;  ///< assignments to this rank's experts
  std::int64_t num_tokens;    ///< of this rank that were routed: fewer than the handle's where the device said so
  std::int64_t lost_by_this_rank;
};

/// The placement in force, in device memory: it changes between two calls, so that graphs go by the new one. All null
/// where experts are not placed.
struct SlotTables {
  ReplicaPolicy* policy = nullptr;
  std::int32_t* replica_begin = nullptr;   ///< [num_experts + 1]
  ReplicaEntry* entries = nullptr;         ///< [columns], of which there are as many as slots in use
  std::int32_t* expert_of_slot = nullptr;  ///< [columns]; -1 = no such slot
};

/// The arrays of one handle, in device memory.
struct HandleArrays {
  std::int64_t num_tokens = 0;
  std::int32_t top_k = 0;
  std::int32_t sends_per_token = 0;  ///< min(top_k, num_ranks)
  std::uint32_t handle_id = 0;
  // Sender's side.
  std::int32_t* expert_ids = nullptr;  ///< [num_tokens, top_k]; slots where experts are placed
  float* weights = nullptr;            ///< [num_tokens, top_k]
  std::int32_t* dst_row = nullptr;     ///< [num_tokens, top_k] output row at the expert's rank; -1 = none or dropped
  SendPlace* sends = nullptr;          ///< [num_tokens, sends_per_token], in the order in which combine adds
  float* send_weights = nullptr;       ///< [num_tokens, sends_per_token] sum of the token's weights there
  // Receiver's side.
  HandleTotals* totals = nullptr;
  std::byte* pair_records = nullptr;         ///< [num_pairs, pair_record_bytes]; expert layouts
  std::int32_t* src_rank = nullptr;          ///< [num_rows]; -1 at padding
  std::int32_t* src_token = nullptr;         ///< [num_rows]; -1 at padding
  std::int32_t* local_expert_ids = nullptr;  ///< [num_rows, top_k]; -1 = not here; token_major
  std::int32_t* row_expert = nullptr;        ///< [num_rows] local expert of the row, -1 at padding; expert layouts
  float* row_weights = nullptr;              ///< [num_rows, weights_per_row]; 0 at padding
  std::int32_t* expert_counts = nullptr;     ///< [num_local_experts] rows that have a place
  std::int32_t* expert_begin = nullptr;      ///< [num_local_experts + 1]; expert layouts
  std::int32_t* expert_dropped = nullptr;    ///< [num_local_experts]
  // Of a dispatch by lines.
  std::int32_t* counts = nullptr;      ///< [num_ranks (source), num_ranks + num_experts] columns of the counts
  Summary* summary = nullptr;          ///< followed by what follows one in host memory
  std::int32_t* clean_rows = nullptr;  ///< [num_local_experts] last rows of a block that are described as padding
};

}  // namespace epistle::cuda
