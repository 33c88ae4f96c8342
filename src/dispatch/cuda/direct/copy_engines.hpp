// The zero-SM mode of `direct`: rows cross by the copy engines, which are faster than stores on NVLink and leave the
// SMs to others. token_major and exact sizing only: there, rows that one source sends to one destination are
// consecutive in the order of tokens.
//
//   runs   few runs of consecutive tokens per destination, and a dense payload: one copy per run, straight from there
//          to its final place.
//          Beyond two kernels of one block that signal and wait, no SM is used.
//   pack   otherwise: a kernel on a few SMs puts the rows for each peer in order into a send buffer, chunk by chunk,
//          and one copy per chunk and peer follows; rows that stay are written to their place by the same kernel. The
//          buffer is this rank's own memory, allocated when first needed for the largest call; it is part of neither
//          the heap nor the layout, so buffer_bytes() and resident_bytes() do not count it.
//
// The runs of a handle are found at its first dispatch, which waits on the host for a small kernel; later dispatches of
// the handle wait for nothing.
//
// Copies cannot be taken back by what a kernel finds: when a peer refuses the call, makes another one or does not come
// in time, that is reported as ever, but this rank's rows are copied all the same. They go to the places agreed on in
// prepare, so nothing is out of place; a peer that refused, or made another call, finds its last output overwritten. It
// does not end that call before the copies are done, so they meet nothing of a later one.
#pragma once

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include <cuda_runtime_api.h>

#include "dispatch/cuda/direct/copy_launch.hpp"
#include "dispatch/cuda/engine/buffer_carver.hpp"
#include "dispatch/cuda/engine/cuda_handle.hpp"
#include "dispatch/cuda/engine/device_buffers.hpp"
#include "gpu/event.hpp"
#include "layout/dispatch_layout.hpp"

namespace epistle::cuda {

/// Above this many copies of rows in one call, packing is used.
inline constexpr int kMaxCopyRuns = 256;
static_assert(kMaxCopyRuns <= kMaxRunStarts);

/// Consecutive tokens that go to consecutive rows of one rank.
struct CopyRun {
  std::int32_t dst_rank;
  std::int32_t token;
  std::int32_t row;
  std::int32_t num_rows;

  friend bool operator==(const CopyRun&, const CopyRun&) = default;
};

/// Where the rows of one handle go.
struct CopyPlan {
  std::uint64_t prepare_id = 0;
  bool has_runs = false;      ///< few enough to copy run by run
  std::vector<CopyRun> runs;  ///< by destination, then by token; only where has_runs
  std::int32_t num_chunks = 1;
  std::vector<std::int32_t> first_row;    ///< [num_ranks] of this rank's rows there
  std::vector<std::int32_t> rows_before;  ///< [num_ranks, num_chunks + 1] rows of the tokens before a chunk

  [[nodiscard]] std::int32_t chunk_row(int dst_rank, std::int32_t chunk) const noexcept {
    return rows_before[static_cast<std::size_t>(dst_rank) * static_cast<std::size_t>(num_chunks + 1) +
                       static_cast<std::size_t>(chunk)];
  }
};

/// Chunks that the tokens of a call are packed in.
[[nodiscard]] std::int32_t num_pack_chunks(std::int64_t num_tokens) noexcept;

/// Pure: reads what find_runs_kernel wrote.
[[nodiscard]] CopyPlan make_copy_plan(const RunList& list, std::int32_t num_ranks, std::int32_t num_chunks,
                                      std::uint64_t prepare_id);

struct CopyEngineSettings {
  /// Copies to one peer take turns on this many streams, so that one begins while another ends.
  int streams_per_peer = 2;
  /// Hands the copies of a stream over in one call, with the hint to keep off the SMs (CUDA 13; never while capturing).
  bool batched = true;
  bool always_pack = false;
};

class CopyEngines {
 public:
  /// Only token_major and exact sizing make rows of one source consecutive; and there must be one buffer, because the
  /// host gives the copies their addresses when it does not know yet which buffer a peer uses.
  [[nodiscard]] static bool can_serve(const LayoutParams& params) noexcept;

  /// Its layout is one that can_serve(). Where other ranks use the same GPU, everything stays on the caller's stream:
  /// kernels of several ranks that wait for each other must not meet other streams in a hardware queue.
  explicit CopyEngines(const EngineContext& context);
  ~CopyEngines();
  CopyEngines(const CopyEngines&) = delete;
  CopyEngines& operator=(const CopyEngines&) = delete;

  /// Settings of the following calls. streams_per_peer counts only before the first one.
  void set(const CopyEngineSettings& settings) noexcept;

  /// Puts a dispatch (args.phases of it) on `stream`; `pack_blocks` SMs pack where that is needed. False when it cannot
  /// be done: `stream` is being captured and this handle has never been dispatched before. Then nothing is on the
  /// stream, and a kernel must do the call; peers do not notice.
  [[nodiscard]] bool dispatch(const CudaHandleState& handle, const MoveArgs& args, int pack_blocks,
                              cudaStream_t stream);

  /// Whether runs of tokens can be copied as they lie: rows and scales of consecutive tokens lie one behind the other.
  /// Copies with a stride would need one call for each run, and none could be batched; other payloads are packed.
  [[nodiscard]] static bool can_copy_runs(const MoveArgs& args) noexcept;

  /// What the last send half did.
  [[nodiscard]] bool has_packed() const noexcept { return has_packed_; }

 private:
  struct Lane;
  class Call;

  void create_lanes();
  [[nodiscard]] const CopyPlan* find_plan(const CudaHandleState& handle, int max_blocks, bool capturing,
                                          cudaStream_t stream);
  [[nodiscard]] bool has_send_buffer(bool capturing);
  [[nodiscard]] bool packs(const CopyPlan& plan, const MoveArgs& args) const noexcept;
  void send(const CopyPlan& plan, const MoveArgs& args, int pack_blocks, bool capturing, cudaStream_t stream);
  void copy_runs(const CopyPlan& plan, const MoveArgs& args, Call& call) const;
  void copy_packed(const CopyPlan& plan, const MoveArgs& args, int pack_blocks, Call& call);

  DispatchLayout layout_;
  int rank_;
  int num_ranks_;
  DeviceSource own_memory_;
  bool shares_gpu_;
  CopyEngineSettings settings_;
  bool has_packed_ = false;
  bool sent_by_kernel_ = false;  ///< the open call's send half was left to a kernel
  Event fork_;
  Event ready_;
  Event last_pack_;
  std::vector<Event> chunk_packed_;
  std::vector<std::unique_ptr<Lane>> lanes_;  ///< the first for what stays here; none where the GPU is shared
  PinnedMemory pinned_;
  RunList list_;
  /// By handle state, which the dispatcher uses again and again: bounded. A plan of an older prepare_id is void.
  std::unordered_map<const CudaHandleState*, CopyPlan> plans_;
  DeviceBuffer send_buffer_;
  bool lacks_memory_ = false;  ///< for the send buffer
  std::byte* packed_rows_ = nullptr;
  std::byte* packed_scales_ = nullptr;
};

}  // namespace epistle::cuda
