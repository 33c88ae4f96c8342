#include "dispatch/cuda/direct/copy_engines.hpp"

#include <algorithm>
#include <span>
#include <string>

#include "core/log.hpp"
#include "dispatch/cuda/engine/context.hpp"
#include "gpu/cuda_error.hpp"
#include "gpu/stream.hpp"

namespace epistle::cuda {

struct RangeCopy {
  std::byte* to;
  const std::byte* from;
  std::size_t num_bytes;
};

namespace {

// Enough chunks that the copies start early and end soon after the packing; each of some megabytes.
constexpr std::int64_t kMinChunkTokens = 64;
// Streams to peers. Together with the caller's and the library's own they stay within the 32 hardware queues of a GPU.
constexpr int kMaxPeerLanes = 8;

void copy_one_by_one(const RangeCopy& copy, cudaStream_t stream) {
  check_cuda(cudaMemcpyAsync(copy.to, copy.from, copy.num_bytes, cudaMemcpyDefault, stream), "copying rows");
}

#if CUDART_VERSION >= 13000
constexpr bool kCanBatch = true;
void copy_batch(std::span<const RangeCopy> copies, cudaStream_t stream) {
  std::vector<void*> to;
  std::vector<const void*> from;
  std::vector<std::size_t> num_bytes;
  for (const RangeCopy& copy : copies) {
    to.push_back(copy.to);
    from.push_back(copy.from);
    num_bytes.push_back(copy.num_bytes);
  }
  cudaMemcpyAttributes attributes{};
  attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
  attributes.flags = cudaMemcpyFlagPreferOverlapWithCompute;
  std::size_t first = 0;
  check_cuda(
      cudaMemcpyBatchAsync(to.data(), from.data(), num_bytes.data(), copies.size(), &attributes, &first, 1, stream),
      "copying rows");
}
#else
constexpr bool kCanBatch = false;
void copy_batch(std::span<const RangeCopy> copies, cudaStream_t stream) {
  for (const RangeCopy& copy : copies) copy_one_by_one(copy, stream);
}
#endif

}  // namespace

// ---- Plan -----------------------------------------------------------------------------------------------------------

std::int32_t num_pack_chunks(std::int64_t num_tokens) noexcept {
  return static_cast<std::int32_t>(std::clamp<std::int64_t>(num_tokens / kMinChunkTokens, 1, kMaxPackChunks));
}

CopyPlan make_copy_plan(const RunList& list, std::int32_t num_ranks, std::int32_t num_chunks,
                        std::uint64_t prepare_id) {
  CopyPlan plan;
  plan.prepare_id = prepare_id;
  plan.num_chunks = num_chunks;
  plan.first_row.assign(list.first_row, list.first_row + num_ranks);
  std::int64_t num_runs = 0;
  for (std::int32_t dst = 0; dst < num_ranks; ++dst) {
    num_runs += list.num_starts[dst];
    plan.rows_before.push_back(0);
    for (std::int32_t chunk = 0; chunk < num_chunks; ++chunk) {
      plan.rows_before.push_back(plan.rows_before.back() + list.chunk_rows[dst * num_chunks + chunk]);
    }
  }
  plan.has_runs = num_runs <= kMaxCopyRuns;
  if (!plan.has_runs) return plan;
  for (std::int32_t dst = 0; dst < num_ranks; ++dst) {
    const RunStart* begin = list.starts + static_cast<std::ptrdiff_t>(dst) * kMaxRunStarts;
    std::vector<RunStart> starts(begin, begin + list.num_starts[dst]);
    std::sort(starts.begin(), starts.end(), [](const RunStart& a, const RunStart& b) { return a.row > b.row; });
    // From the last to the first. Rows are consecutive: a run ends where the next one begins.
    std::int32_t row_end = plan.first_row[static_cast<std::size_t>(dst)] + plan.chunk_row(dst, num_chunks);
    const auto first = static_cast<std::ptrdiff_t>(plan.runs.size());
    for (const RunStart& start : starts) {
      plan.runs.push_back({.dst_rank = dst, .token = start.token, .row = start.row, .num_rows = row_end - start.row});
      row_end = start.row;
    }
    std::reverse(plan.runs.begin() + first, plan.runs.end());
  }
  return plan;
}

// ---- Streams --------------------------------------------------------------------------------------------------------

/// An internal stream, and the event behind what it does for one call.
struct CopyEngines::Lane {
  OwnedStream stream;
  Event done{EventKind::kOrder};
};

/// The copies of one call: forked from the caller's stream, and joined to it at the end.
class CopyEngines::Call {
 public:
  Call(const CopyEngines& engines, bool capturing, cudaStream_t stream)
      : engines_(engines),
        stream_(stream),
        used_(engines.lanes_.size()),
        waiting_(engines.lanes_.size()),
        batched_(kCanBatch && engines.settings_.batched && !capturing && !engines.lanes_.empty()) {}

  /// For work on this GPU: may begin before the peers are ready.
  [[nodiscard]] cudaStream_t local_stream() { return stream_of(kLocalLane); }

  /// The `turn`-th copy to the peer that is `distance` ranks away.
  [[nodiscard]] std::size_t peer_lane(int distance, int turn) const noexcept {
    const std::size_t num_lanes = engines_.lanes_.size();
    if (num_lanes < 2) return 0;
    const auto nth = static_cast<std::size_t>((distance - 1) * engines_.settings_.streams_per_peer +
                                              turn % engines_.settings_.streams_per_peer);
    return 1 + nth % (num_lanes - 1);
  }
  [[nodiscard]] static constexpr std::size_t local_lane() noexcept { return kLocalLane; }

  [[nodiscard]] cudaStream_t stream_of(std::size_t lane) {
    if (engines_.lanes_.empty()) return stream_;
    const cudaStream_t stream = engines_.lanes_[lane]->stream.get();
    if (!used_[lane]) (lane == kLocalLane ? engines_.fork_ : engines_.ready_).hold_back(stream);
    used_[lane] = true;
    return stream;
  }

  /// Copies that wait for nothing else; begun by start().
  void add(std::size_t lane, const RangeCopy& copy) {
    if (waiting_.empty()) waiting_.resize(1);
    if (copy.num_bytes > 0) waiting_[engines_.lanes_.empty() ? 0 : lane].push_back(copy);
  }
  void start() {
    if (batched_) {
      for (std::size_t lane = 0; lane < waiting_.size(); ++lane) {
        if (!waiting_[lane].empty()) copy_batch(waiting_[lane], stream_of(lane));
      }
      waiting_.clear();
      return;
    }
    std::size_t most = 0;
    for (const std::vector<RangeCopy>& copies : waiting_) most = std::max(most, copies.size());
    // In turns, so that every stream has work early; the link first.
    for (std::size_t i = 0; i < most; ++i) {
      for (std::size_t lane = waiting_.size(); lane-- > 0;) {
        if (i < waiting_[lane].size()) copy_one_by_one(waiting_[lane][i], stream_of(lane));
      }
    }
    waiting_.clear();
  }

  void join() {
    for (std::size_t lane = 0; lane < used_.size(); ++lane) {
      if (!used_[lane]) continue;
      const Lane& used = *engines_.lanes_[lane];
      used.done.record(used.stream.get());
      used.done.hold_back(stream_);
    }
  }

 private:
  static constexpr std::size_t kLocalLane = 0;
  const CopyEngines& engines_;
  cudaStream_t stream_;
  std::vector<bool> used_;
  std::vector<std::vector<RangeCopy>> waiting_;  ///< by lane
  bool batched_;
};

// ---- Calls ----------------------------------------------------------------------------------------------------------

bool CopyEngines::can_serve(const LayoutParams& params) noexcept {
  return params.layout == OutputLayout::kTokenMajor && params.sizing == SizingMode::kExact && params.num_buffers == 1 &&
         params.scale_order == ScaleOrder::kRows;
}

CopyEngines::CopyEngines(const EngineContext& context)
    : layout_(context.layout()),
      rank_(context.rank()),
      num_ranks_(context.num_ranks()),
      own_memory_(context.own_memory),
      shares_gpu_(context.shares_gpu) {
  const DeviceGuard guard(context.device);
  check_cuda(load_copy_kernels(), "loading the kernels of the copy engines");
  for (Event* const event : {&fork_, &ready_, &last_pack_}) *event = Event(EventKind::kOrder);
  for (int chunk = 0; chunk < kMaxPackChunks; ++chunk) chunk_packed_.emplace_back(EventKind::kOrder);
  pinned_ = PinnedMemory::carve([this](BufferCarver& carver) { carve_run_list(carver, num_ranks_, list_); });
}

CopyEngines::~CopyEngines() = default;

void CopyEngines::set(const CopyEngineSettings& settings) noexcept {
  settings_ = settings;
  settings_.streams_per_peer = std::max(1, settings.streams_per_peer);
}

void CopyEngines::create_lanes() {
  if (shares_gpu_ || !lanes_.empty()) return;
  const int num_peer_lanes = std::min(kMaxPeerLanes, (num_ranks_ - 1) * settings_.streams_per_peer);
  for (int lane = 0; lane <= num_peer_lanes; ++lane) lanes_.push_back(std::make_unique<Lane>());
}

const CopyPlan* CopyEngines::find_plan(const CudaHandleState& handle, int max_blocks, bool capturing,
                                       cudaStream_t stream) {
  CopyPlan& plan = plans_[&handle];
  if (plan.prepare_id == handle.prepare_id) return &plan;
  if (capturing) return nullptr;
  const std::int32_t num_chunks = num_pack_chunks(handle.arrays.num_tokens);
  // Not behind other work of the caller, where there is a stream of our own: prepare is over, the host has its counts.
  const cudaStream_t own = lanes_.empty() ? stream : lanes_[Call::local_lane()]->stream.get();
  const RunListArgs args{.handle = handle.arrays, .num_ranks = num_ranks_, .num_chunks = num_chunks, .list = list_};
  check_cuda(launch_find_runs(args, std::clamp(max_blocks, 1, num_ranks_), own), "launching the search for runs");
  fork_.record(own);
  fork_.wait("waiting for the runs of a routing");
  plan = make_copy_plan(list_, num_ranks_, num_chunks, handle.prepare_id);
  return &plan;
}

/// Room for the rows of the largest call.
bool CopyEngines::has_send_buffer(bool capturing) {
  if (packed_rows_ != nullptr) return true;
  if (capturing || lacks_memory_) return false;
  std::byte* rows = nullptr;
  try {
    send_buffer_ =
        own_memory_.carve([&](BufferCarver& carver) { carve_packed(carver, layout_, rows, packed_scales_); });
  } catch (const Error& error) {
    // Not worth a call that only this rank cannot make: a kernel needs no buffer.
    if (error.code() != ErrorCode::kOutOfMemory) throw;
    log_warn(std::string("the copy engines are not used: ") + error.what());
    lacks_memory_ = true;
    return false;
  }
  packed_rows_ = rows;
  return true;
}

bool CopyEngines::can_copy_runs(const MoveArgs& args) noexcept {
  const TokenStrides& strides = args.strides;
  const bool dense_scales =
      args.scale_bytes == 0 || (strides.has_dense_scales() && strides.scale_row == args.scale_bytes);
  return strides.row == args.row_bytes && dense_scales;
}

bool CopyEngines::packs(const CopyPlan& plan, const MoveArgs& args) const noexcept {
  return !plan.has_runs || settings_.always_pack || !can_copy_runs(args);
}

bool CopyEngines::dispatch(const CudaHandleState& handle, const MoveArgs& args, int pack_blocks, cudaStream_t stream) {
  CopySignalArgs signal{.group = args.group, .totals = args.handle.totals, .phases = args.phases};
  if ((args.phases & kSendPhase) != 0) {
    const bool capturing = is_capturing(stream);
    if (!capturing) create_lanes();
    const CopyPlan* plan = find_plan(handle, pack_blocks, capturing, stream);
    sent_by_kernel_ = plan == nullptr;
    if (plan != nullptr && packs(*plan, args)) sent_by_kernel_ = !has_send_buffer(capturing);
    if (sent_by_kernel_) return false;
    const bool forked = !lanes_.empty();
    if (forked) fork_.record(stream);
    check_cuda(launch_start_copies(signal, stream), "launching the start of dispatch");
    if (forked) ready_.record(stream);
    send(*plan, args, pack_blocks, capturing, stream);
  } else if (sent_by_kernel_) {
    return false;
  }
  check_cuda(launch_finish_copies(signal, stream), "launching the end of dispatch");
  return true;
}

void CopyEngines::send(const CopyPlan& plan, const MoveArgs& args, int pack_blocks, bool capturing,
                       cudaStream_t stream) {
  Call call(*this, capturing, stream);
  has_packed_ = packs(plan, args);
  if (has_packed_) {
    copy_packed(plan, args, pack_blocks, call);
  } else {
    copy_runs(plan, args, call);
  }
  call.join();
  if (has_packed_ && !capturing) last_pack_.record(stream);
}

void CopyEngines::copy_runs(const CopyPlan& plan, const MoveArgs& args, Call& call) const {
  int turn = 0;
  for (const CopyRun& run : plan.runs) {
    const int distance = (run.dst_rank - rank_ + num_ranks_) % num_ranks_;
    const auto add = [&](BufferSection section, const std::byte* from, std::int64_t num_bytes) {
      const std::size_t lane = distance == 0 ? Call::local_lane() : call.peer_lane(distance, turn++);
      call.add(lane, {.to = args.group.section(run.dst_rank, section) + run.row * num_bytes,
                      .from = from + run.token * num_bytes,
                      .num_bytes = static_cast<std::size_t>(run.num_rows * num_bytes)});
    };
    add(BufferSection::kReceiveRows, args.rows, args.row_bytes);
    if (args.scale_bytes > 0) add(BufferSection::kReceiveScales, args.scales, args.scale_bytes);
  }
  call.start();
}

void CopyEngines::copy_packed(const CopyPlan& plan, const MoveArgs& args, int pack_blocks, Call& call) {
  PackArgs pack;
  pack.group = args.group;
  pack.handle = args.handle;
  pack.rows = args.rows;
  pack.scales = args.scales;
  pack.row_bytes = args.row_bytes;
  pack.scale_bytes = args.scale_bytes;
  pack.strides = args.strides;
  pack.packed_rows = packed_rows_;
  pack.packed_scales = packed_scales_;
  pack.num_blocks = std::max(1, pack_blocks);
  std::int32_t num_packed = 0;
  for (int dst = 0; dst < num_ranks_; ++dst) {
    if (dst == rank_) continue;
    pack.row_shift[dst] = num_packed - plan.first_row[static_cast<std::size_t>(dst)];
    num_packed += plan.chunk_row(dst, plan.num_chunks);
  }
  const bool forked = !lanes_.empty();
  for (std::int32_t chunk = 0; chunk < plan.num_chunks; ++chunk) {
    pack.token_begin = chunk_begin(args.handle.num_tokens, plan.num_chunks, chunk);
    pack.token_end = chunk_begin(args.handle.num_tokens, plan.num_chunks, chunk + 1);
    if (pack.token_begin == pack.token_end) continue;
    const cudaStream_t packing = call.local_stream();
    const Event& packed = chunk_packed_[static_cast<std::size_t>(chunk)];
    check_cuda(launch_pack(pack, packing), "launching the packing of rows");
    if (forked) packed.record(packing);
    for (int distance = 1; distance < num_ranks_; ++distance) {
      const int dst = (rank_ + distance) % num_ranks_;
      const std::int64_t row = plan.first_row[static_cast<std::size_t>(dst)] + plan.chunk_row(dst, chunk);
      const std::int64_t num_rows = plan.chunk_row(dst, chunk + 1) - plan.chunk_row(dst, chunk);
      if (num_rows == 0) continue;
      const cudaStream_t copying = call.stream_of(call.peer_lane(distance, chunk));
      if (forked) packed.hold_back(copying);
      const auto copy = [&](BufferSection section, const std::byte* from, std::int64_t num_bytes) {
        copy_one_by_one({.to = args.group.section(dst, section) + row * num_bytes,
                         .from = from + (row + pack.row_shift[dst]) * num_bytes,
                         .num_bytes = static_cast<std::size_t>(num_rows * num_bytes)},
                        copying);
      };
      copy(BufferSection::kReceiveRows, packed_rows_, args.row_bytes);
      if (args.scale_bytes > 0) copy(BufferSection::kReceiveScales, packed_scales_, args.scale_bytes);
    }
  }
}

}  // namespace epistle::cuda
