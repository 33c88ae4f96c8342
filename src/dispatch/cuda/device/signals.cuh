// How ranks' kernels wait for each other: flags in the peers' control sections, written with release semantics and
// polled with relaxed loads, with one acquire at the end, at system scope. Every wait ends: by the flag, by real time,
// or because the host says so.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dispatch/cuda/device/device_types.hpp"

namespace epistle::cuda {

/// The clock that timeouts count: nanoseconds of real time, whatever the SM clock does.
__device__ inline std::uint64_t now_ns() {
  std::uint64_t ns;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
  return ns;
}

/// Orders everything before against everything after, for all GPUs; cumulative. Lighter than __threadfence_system(),
/// which is sequentially consistent.
__device__ inline void fence_system() { asm volatile("fence.acq_rel.sys;" ::: "memory"); }
__device__ inline void fence_device() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

// Polling uses relaxed loads: an acquire load empties the L1 cache every time.
__device__ inline std::uint32_t load_relaxed(const std::uint32_t* flag) {
  std::uint32_t value;
  asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}
__device__ inline std::uint64_t load_relaxed(const std::uint64_t* flag) {
  std::uint64_t value;
  asm volatile("ld.relaxed.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(flag) : "memory");
  return value;
}
__device__ inline std::uint32_t load_acquire(const std::uint32_t* flag) {
  std::uint32_t value;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}
__device__ inline std::uint64_t load_acquire(const std::uint64_t* flag) {
  std::uint64_t value;
  asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(flag) : "memory");
  return value;
}
// After a fence.
__device__ inline void store_relaxed(std::uint32_t* flag, std::uint32_t value) {
  asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}
__device__ inline void store_relaxed(std::uint64_t* flag, std::uint64_t value) {
  asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(flag), "l"(value) : "memory");
}

// 16 bytes that one lane stores come whole, so data can carry its own signal. For lines (low_latency) those of eight
// lanes do.
__device__ inline void store_whole(std::byte* to, const uint4& v) {
  asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}
__device__ inline uint4 load_whole(const std::byte* from) {
  uint4 v;
  asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from)
               : "memory");
  return v;
}
__device__ inline void store_release(std::uint32_t* flag, std::uint32_t value) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}
__device__ inline void store_release(std::uint64_t* flag, std::uint64_t value) {
  asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(flag), "l"(value) : "memory");
}

/// Signals may run ahead (a peer already in its next call), never back; epochs wrap.
__device__ inline bool reached(std::uint32_t seen, std::uint32_t epoch) {
  return static_cast<std::int32_t>(seen - epoch) >= 0;
}

/// One call of this rank's kernel.
struct CallContext {
  const DeviceGroup* group;
  std::uint32_t epoch;
  std::uint64_t announced;
  Phase phase;
};

/// What a kernel begins.
struct CallStart {
  DeviceCall call;
  Phase phase;
  const HandleTotals* handle = nullptr;  ///< null where the call has none yet
  std::int32_t buffer = 0;               ///< of this rank; see call_words.hpp
};

/// What the next call of this rank needs from memory. Reads past the L1 cache, because a prepare that this kernel
/// overlaps may have ended its call just before.
struct NextCall {
  std::uint32_t failed;
  std::uint32_t prepared;
  std::uint64_t completed;

  /// Asks for it: nothing waits before finish(), so that a kernel can ask for what else it needs.
  __device__ NextCall(const DeviceGroup& group, const CallStart& start)
      : failed(__ldcg(&group.local->failed)),
        prepared(start.handle != nullptr ? __ldcg(&start.handle->prepared) : 0),
        completed(__ldcg(&group.local->epoch)) {}

  /// The next call: every block of its kernel makes the same. False when an earlier one has failed.
  __device__ bool finish(const DeviceGroup& group, const CallStart& start, CallContext& call) const {
    const auto epoch = static_cast<std::uint32_t>(completed + 1);
    call = {&group, epoch, call_word(epoch, start.call, prepared, start.buffer), start.phase};
    return failed == 0;
  }
};
__device__ inline bool next_call(const DeviceGroup& group, const CallStart& start, CallContext& call) {
  return NextCall(group, start).finish(group, start, call);
}

__device__ inline std::uint32_t* work_queue(const CallContext& call, WorkQueue queue) {
  return &call.group->local->queues[call.epoch & 1U][queue];
}

/// Puts the first finding of this rank into host memory, and ends all further work when it is fatal.
__device__ inline void report(const DeviceGroup& group, Finding finding, Phase phase, int peer, std::int64_t a,
                              std::int64_t b) {
  if (atomicCAS(&group.local->failed, 0U, static_cast<std::uint32_t>(finding)) != 0U) return;
  Report& out = group.host->report;
  out.phase = static_cast<std::uint32_t>(phase);
  out.peer = peer;
  out.a = a;
  out.b = b;
  __threadfence_system();
  *static_cast<volatile std::uint32_t*>(&out.finding) = static_cast<std::uint32_t>(finding);
}

__device__ inline bool has_failed(const DeviceGroup& group) {
  return *static_cast<volatile std::uint32_t*>(&group.local->failed) != 0U;
}

/// Where the announcement of `source` stands in the control section of `rank`.
__device__ inline std::uint64_t* ready_flag(const DeviceGroup& group, std::uint32_t epoch, int rank, int source) {
  return group.control_at<std::uint64_t>(rank, group.control.ready_offset()) +
         static_cast<int>(epoch & 1U) * group.num_ranks + source;
}
__device__ inline std::uint64_t* ready_flag(const CallContext& call, int rank, int source) {
  return ready_flag(*call.group, call.epoch, rank, source);
}
__device__ inline const std::uint64_t* ready_flag(const CallContext& call, int source) {
  return ready_flag(call, call.group->rank, source);
}

/// Polls from one look at clocks and peers to the next, and to one at the host, whose memory is far away. Powers of
/// two.
inline constexpr std::uint32_t kPollsPerLook = 64;
inline constexpr std::uint32_t kPollsPerLookAtHost = 4096;

/// True when the wait must be given up; looks at clocks and at the host every now and then.
__device__ inline bool gives_up(const CallContext& call, int peer, std::uint64_t start_ns, std::uint32_t polls) {
  const DeviceGroup& group = *call.group;
  if (has_failed(group)) return true;
  // What a peer in another call owes in this one will not come. (Announcements themselves are waited for in any case.)
  const std::uint64_t theirs = load_relaxed(ready_flag(call, peer));
  if (epoch_of(theirs) == call.epoch && !same_call(theirs, call.announced)) return true;
  if (now_ns() - start_ns > group.timeout_ns) {
    report(group, Finding::kTimeout, call.phase, peer, 0, 0);
    return true;
  }
  if (polls % kPollsPerLookAtHost == 0 && *static_cast<volatile std::uint32_t*>(&group.host->abort) != 0U) {
    report(group, Finding::kAborted, call.phase, peer, 0, 0);
    return true;
  }
  return false;
}

__device__ inline std::uint32_t epoch_in(std::uint32_t flag) { return flag; }
__device__ inline std::uint32_t epoch_in(std::uint64_t flag) { return epoch_of(flag); }

/// The slow part of waiting.
template <typename Flag>
__device__ __noinline__ bool poll(const CallContext& call, int peer, const Flag* flag) {
  const std::uint64_t start_ns = now_ns();
  for (std::uint32_t polls = 1;; ++polls) {
    if (reached(epoch_in(load_relaxed(flag)), call.epoch)) return true;
    if (polls % kPollsPerLook == 0 && gives_up(call, peer, start_ns, polls)) return false;
  }
}

/// Polls until `flag` has reached the call's epoch. False when the wait was given up.
template <typename Flag>
__device__ inline bool await(const CallContext& call, int peer, const Flag* flag) {
  return reached(epoch_in(load_relaxed(flag)), call.epoch) || poll(call, peer, flag);
}

/// The same, and everything that the flag's writer wrote before is visible.
template <typename Flag>
__device__ inline bool wait_for_flag(const CallContext& call, int peer, const Flag* flag) {
  if (!await(call, peer, flag)) return false;
  static_cast<void>(load_acquire(flag));
  return true;
}

/// Waits until `peer` has started its call, and returns its word; 0 when the wait was given up.
__device__ inline std::uint64_t await_word(const CallContext& call, int peer) {
  const std::uint64_t* flag = ready_flag(call, peer);
  // Not a fence: that would wait for this rank's own announcement to arrive, which takes 2 us.
  return await(call, peer, flag) ? load_acquire(flag) : 0;
}

/// The same; true when it is the very same call.
__device__ inline bool starts_same_call(const CallContext& call, int peer) {
  return same_but_choices(await_word(call, peer), call.announced);
}

/// What the announcements of all ranks come to; they must be there.
__device__ inline Verdict verdict_of(const CallContext& call) {
  return judge(ready_flag(call, 0), call.group->num_ranks, call.group->rank);
}

/// The slow part of wait_all_ready(), where some announcement is another one: waits for all, and says whether they go
/// together all the same. By all threads of the block.
__device__ __noinline__ inline bool settle(const CallContext& call) {
  __shared__ bool agreed;
  bool there = true;
  for (int peer = static_cast<int>(threadIdx.x); peer < call.group->num_ranks; peer += static_cast<int>(blockDim.x)) {
    const std::uint64_t* flag = ready_flag(call, peer);
    there = wait_for_flag(call, peer, flag) && there;
  }
  there = __syncthreads_and(there) != 0;
  if (threadIdx.x == 0) agreed = there && verdict_of(call).outcome == Verdict::Outcome::kAgreed;
  __syncthreads();
  return agreed;
}

/// The end of wait_all_ready(). `ok`: the words that this thread has seen are those of this call.
template <typename See>
__device__ inline bool agree_on_words(const CallContext& call, bool ok, const See& see) {
  if (__syncthreads_and(ok) != 0) return true;
  if (!settle(call)) return false;
  // Now all words are there.
  for (int peer = static_cast<int>(threadIdx.x); peer < call.group->num_ranks; peer += static_cast<int>(blockDim.x)) {
    see(peer, load_relaxed(ready_flag(call, peer)));
  }
  __syncthreads();
  return true;
}

/// Waits until all ranks have started a call; true when it is this one on all of them. The same answer in all threads
/// of the block, in all blocks of the kernel and on all ranks, unless a wait was given up. `see(peer, word)` is called
/// by one thread for the word of every rank; what it writes to shared memory is there for the block. Where the answer
/// is false, the words may be any.
template <typename See>
__device__ inline bool wait_all_ready(const CallContext& call, const See& see) {
  bool ok = true;
  for (int peer = static_cast<int>(threadIdx.x); peer < call.group->num_ranks; peer += static_cast<int>(blockDim.x)) {
    const std::uint64_t word = await_word(call, peer);
    ok = same_but_choices(word, call.announced) && ok;
    see(peer, word);
  }
  return agree_on_words(call, ok, see);
}
__device__ inline bool wait_all_ready(const CallContext& call) {
  return wait_all_ready(call, [](int, std::uint64_t) {});
}

/// What the prepare of a rank has announced of the dispatch behind it.
__device__ inline std::uint64_t* early_flag(const DeviceGroup& group, int rank, int source) {
  return group.control_at<std::uint64_t>(rank, group.control.early_ready_offset()) + source;
}

/// By prepare: the dispatch that follows closely may write to this rank, into `buffer`. By the first threads of one
/// block.
__device__ inline void announce_early(const CallContext& call, std::int32_t buffer) {
  const DeviceGroup& group = *call.group;
  const std::uint64_t word = call_word(call.epoch + 1, DeviceCall::kDispatch, call.epoch, buffer);
  for (int peer = static_cast<int>(threadIdx.x); peer < group.num_ranks; peer += static_cast<int>(blockDim.x)) {
    const Voice voice = group.voice_to(peer);
    store_relaxed(early_flag(group, voice.rank, voice.source), word);
  }
}

/// Tells every rank that this one has started the call. By `num_threads` threads of one block. Needs no fence: what
/// this rank did before, it did in kernels that have ended. `group`: that of the call, where the kernel has it at hand;
/// every look through a pointer to a kernel's arguments is a wait for memory.
__device__ inline void announce(const DeviceGroup& group, const CallContext& call, int thread, int num_threads) {
#pragma unroll 1
  for (int peer = thread; peer < group.num_ranks; peer += num_threads) {
    const Voice voice = group.voice_to(peer);
    store_relaxed(ready_flag(group, call.epoch, voice.rank, voice.source), call.announced);
  }
}
/// The same by the whole block.
__device__ inline void announce(const CallContext& call) {
  announce(*call.group, call, static_cast<int>(threadIdx.x), static_cast<int>(blockDim.x));
}

/// Where the blocks of a source say in this rank's control section that they are done.
__device__ inline std::uint64_t* done_signals(const DeviceGroup& group, int rank, int source) {
  return group.control_at<std::uint64_t>(rank, group.control.done_offset()) +
         std::int64_t{source} * DeviceControl::kMaxBlocks;
}

/// Tells every rank that this block is done with the call: the call's epoch, and how many blocks say so. No block waits
/// for the others of its kernel, and the receiver needs no atomics across the link. `kSends`: what the block has sent
/// is there when the signal is; without it the block has only read what the peers hold, and used what it has read, so
/// there is no store to wait for. All threads of the block call it, once in a call.
template <bool kSends>
__device__ inline void signal_done(const CallContext& call) {
  const DeviceGroup& group = *call.group;
  __syncthreads();
  for (int peer = static_cast<int>(threadIdx.x); peer < group.num_ranks; peer += static_cast<int>(blockDim.x)) {
    const Voice voice = group.voice_to(peer);
    std::uint64_t* signal = done_signals(group, voice.rank, voice.source) + blockIdx.x;
    const std::uint64_t word = (std::uint64_t{call.epoch} << 32) | gridDim.x;
    if constexpr (kSends) {
      store_release(signal, word);
    } else {
      store_relaxed(signal, word);
    }
  }
}

/// Waits for the done signals of all blocks of all ranks, every thread for some of them. What the blocks wrote is
/// visible to kernels behind this one; in this one after a fence, when the block has met.
__device__ inline void wait_all_done(const CallContext& call) {
  const DeviceGroup& group = *call.group;
  const int thread = static_cast<int>(threadIdx.x);
  const int threads = static_cast<int>(blockDim.x);
  const int lanes = max(1, threads / group.num_ranks);
  for (int peer = thread / lanes; peer < group.num_ranks; peer += threads / lanes) {
    const std::uint64_t* signals = done_signals(group, group.rank, peer);
    // The first block says how many there are.
    if (!await(call, peer, signals)) continue;
    const std::uint64_t word = load_relaxed(signals);
    // A peer that is in its next call already has completed this one.
    if (epoch_of(word) != call.epoch) continue;
    const int blocks = static_cast<int>(word & 0xffffffffU);
    for (int block = 1 + thread % lanes; block < blocks; block += lanes) {
      static_cast<void>(await(call, peer, signals + block));
    }
  }
}

// A kernel that starts while the one before it ends (sm_90 and later).
__device__ inline void let_next_kernel_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}
__device__ inline void wait_for_kernel_before() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}

/// First of all in a kernel that may have been started early.
__device__ inline void wait_for_start(const DeviceGroup& group) {
  if (group.early_start) wait_for_kernel_before();
}

/// Counts this block in; true in the block that comes last, with everything the others wrote visible. `counter` goes
/// back to 0 there. All threads of the block call it.
__device__ inline bool is_last_block(std::uint32_t* counter) {
  __shared__ bool last;
  __syncthreads();
  if (threadIdx.x == 0) {
    // Cumulative: what the block's threads stored before the barrier is performed before the block counts.
    fence_system();
    const std::uint32_t before = atomicAdd(counter, 1U);
    last = before == gridDim.x - 1;
    if (last) *counter = 0;
    fence_device();
  }
  __syncthreads();
  return last;
}

/// Empties the work queues of the call behind that of an epoch.
__device__ inline void clear_queues(LocalState& local, std::uint32_t epoch) {
  for (std::uint32_t& taken : local.queues[(epoch + 1) & 1U]) taken = 0;
}
__device__ inline void clear_queues(const CallContext& call) { clear_queues(*call.group->local, call.epoch); }

/// The call is complete for the next kernel. By one thread, when every block of this one has read the epoch.
__device__ inline void finish_epoch(LocalState& local, std::uint32_t epoch) {
  clear_queues(local, epoch);
  local.epoch = epoch;
}
__device__ inline void finish_epoch(const CallContext& call) { finish_epoch(*call.group->local, call.epoch); }

/// True in the last block that comes here, and there in one thread only.
__device__ inline bool leaves_last(const DeviceGroup& group, int thread = 0) {
  if (static_cast<int>(threadIdx.x) != thread || atomicAdd(&group.local->blocks_left, 1U) != gridDim.x - 1)
    return false;
  group.local->blocks_left = 0;
  return true;
}

/// Ends the call of this kernel, at the last of its blocks that comes here. Every block does, after it has read the
/// epoch; `thread` sees to it, and waits for memory.
__device__ inline void leave_call(const DeviceGroup& group, const CallContext& call, int thread) {
  if (leaves_last(group, thread)) finish_epoch(*group.local, call.epoch);
}
__device__ inline void leave_call(const CallContext& call) { leave_call(*call.group, call, 0); }

/// Tells the host that the ranks did not agree on a call, once where both halves find it. By one thread, with all
/// announcements there. What the host has not looked at yet stays.
__device__ __noinline__ inline void report_call(const CallContext& call, std::uint32_t send_half) {
  LocalState& local = *call.group->local;
  if (local.reported == call.epoch) return;
  local.reported = call.epoch;
  const Verdict verdict = verdict_of(call);
  Report& out = call.group->host->refused;
  auto* finding = static_cast<volatile std::uint32_t*>(&out.finding);
  if (verdict.outcome == Verdict::Outcome::kAgreed || *finding != 0) return;
  out.phase = static_cast<std::uint32_t>(call.phase);
  out.peer = verdict.peer;
  out.rank = verdict.rank;
  out.a = static_cast<std::int64_t>(verdict.word);
  out.b = static_cast<std::int64_t>(verdict.peer_word);
  out.send_half = send_half;
  __threadfence_system();
  *finding = static_cast<std::uint32_t>(verdict.outcome == Verdict::Outcome::kRejected ? Finding::kPeerRejected
                                                                                       : Finding::kCallMismatch);
}

/// The end of a call that the ranks did not agree on, in one block: nothing has been sent, but by copy engines, which
/// must be done before the next call. `tells`: this rank has not refused, so its host hears of it here.
__device__ __noinline__ inline void abandon_call(const CallContext& call, bool tells) {
  const DeviceGroup& group = *call.group;
  bool there = true;
  for (int peer = static_cast<int>(threadIdx.x); peer < group.num_ranks; peer += static_cast<int>(blockDim.x)) {
    const std::uint64_t* flag = ready_flag(call, peer);
    if (!await(call, peer, flag)) {
      there = false;
      continue;
    }
    // As a rank that makes the peer's call would wait for it.
    CallContext theirs = call;
    theirs.announced = load_acquire(flag);
    if (copies(theirs.announced)) there = wait_for_flag(theirs, peer, done_signals(group, group.rank, peer)) && there;
  }
  const bool all_there = __syncthreads_and(there) != 0;
  if (threadIdx.x != 0) return;
  group.local->abandoned = call.epoch;
  if (tells && all_there) report_call(call, 0);
}

/// What every block does at the end of a call that the ranks agreed on, behind its own *done* signal. Inlined by force:
/// the kernels of combine take more registers otherwise.
__device__ __forceinline__ void complete_call(const CallContext& call) {
  leave_call(call);
  if (blockIdx.x == 0) wait_all_done(call);
}

/// What every block does that finds that the ranks did not agree. `ends_call`: the kernel has the receive half of the
/// call; where it has only the send half, the host hears of it now, and the receive half ends the call.
__device__ __noinline__ inline void give_up_call(const CallContext& call, bool ends_call, std::uint32_t send_half) {
  if (!ends_call) {
    if (blockIdx.x == 0 && threadIdx.x == 0) report_call(call, send_half);
    return;
  }
  leave_call(call);
  if (blockIdx.x == 0) abandon_call(call, true);
}

/// The last that one block of every kernel that ends a call does. `agreed`: what wait_all_ready() has said.
__device__ inline void end_call(const CallContext& call, bool agreed) {
  if (agreed) {
    wait_all_done(call);
  } else {
    abandon_call(call, true);
  }
}

}  // namespace epistle::cuda
