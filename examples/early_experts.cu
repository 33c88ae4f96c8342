// Experts that begin before all rows are there, and a combine that begins before all experts are done.
//
// A stand-in for a grouped GEMM (one kernel, a few warps for each row) runs beside the
// receive half of dispatch and beside combine: it takes rows as their flags rise (epistle/device/row_flags.hpp) and
// marks its outputs. As in a decode step, experts have few rows each, and what they take is the reading of their
// weights. The same step is also made one call after the other; sums must be the same, bit for bit, and what a step
// takes is printed for both.
//
//   early_experts [SMs of each call beside the experts, 32] [products per output, 4] [tokens per rank, 128]
//                 [KiB of weights for each row, 512; 0: none are read]
//
// The ranks are threads, each with a GPU of its own, or half of one ("virtual ranks"). The exit code is 77 where there
// is no GPU.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include "epistle/cuda.hpp"
#include "epistle/device/row_flags.hpp"
#include "epistle/dispatcher.hpp"

namespace {

constexpr int kRanks = 2;
constexpr std::int32_t kExperts = 256;
constexpr std::int32_t kTopK = 8;
constexpr std::int64_t kHidden = 7168;
constexpr int kWarp = 32;
// A block fills an SM. Its teams work on rows of their own, so that one computes while another one waits for memory.
constexpr int kTeams = 4;
constexpr int kTeamThreads = 256;
constexpr int kSharedBytes = kTeams * static_cast<int>(kHidden) * 4;
constexpr std::uint64_t kPatienceNs = 2'000'000'000;
constexpr std::int64_t kSlices = 1021;  // a prime: rows of all experts spread over them
constexpr int kReplays = 100;
constexpr int kRounds = 7;
static_assert(kExperts <= 32 * kWarp, "a lane has a bit for each of its sources and experts");
constexpr int kCountBits = 12;      // of a claim, for the rows of a source and an expert that are taken
constexpr int kNoGpuExitCode = 77;  // ctest counts it as skipped

struct Settings {
  int comm_sms = 32;
  int taps = 4;
  std::int64_t tokens = 128;
  std::int64_t weight_kib = 512;
};

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw epistle::Error(epistle::ErrorCode::kSystem, std::string(what) + ": " + cudaGetErrorString(status));
}

// ---- The experts ----------------------------------------------------------------------------------------------------

struct ExpertArgs {
  epistle::device::RowFlags flags;  // without a number: all rows are there, and nobody asks what is done
  const __nv_bfloat16* rows;
  __nv_bfloat16* outputs;
  const std::int32_t* expert_counts;
  std::int64_t rows_per_expert;
  int num_experts;  // here
  int taps;
  const uint4* weights;      // [kSlices, slice_units]
  std::int64_t slice_units;  // of 16 bytes; what a row reads
  std::uint32_t* claims;     // [source, expert] of early rows: see claim_row()
  int* num_failed_waits;
};

/// Of a block.
struct Team {
  int number;
  int thread;
  float* in;  // of a row, in shared memory

  __device__ explicit Team(float* shared)
      : number(static_cast<int>(threadIdx.x) / kTeamThreads),
        thread(static_cast<int>(threadIdx.x) % kTeamThreads),
        in(shared + number * kHidden) {}
  __device__ void meet() const { asm volatile("bar.sync %0, %1;" ::"r"(number + 1), "n"(kTeamThreads) : "memory"); }
};

/// A row's share of its expert's weights, from memory; what this thread has read comes to a number.
__device__ float read_weights(const ExpertArgs& args, std::int64_t row, const Team& team) {
  // Many slices, so that no row finds its own in the cache.
  const uint4* const slice = args.weights + row % kSlices * args.slice_units;
  std::uint32_t seen = 0;
#pragma unroll 8
  for (std::int64_t i = team.thread; i < args.slice_units; i += kTeamThreads) {
    const uint4 unit = __ldcs(slice + i);
    seen += unit.x ^ unit.y ^ unit.z ^ unit.w;
  }
  return static_cast<float>(seen % 8U);
}

/// out[c] = sum over t < taps of in[c + t * stride] * weight(expert, t), in this order, behind what weights come to.
__device__ void compute_row(const ExpertArgs& args, std::int64_t row, int expert, const Team& team) {
  const __nv_bfloat16* from = args.rows + row * kHidden;
  for (int c = team.thread; c < kHidden; c += kTeamThreads) team.in[c] = __bfloat162float(from[c]);
  const float bias = read_weights(args, row, team);
  team.meet();
  for (int c = team.thread; c < kHidden; c += kTeamThreads) {
    float sum = bias;
    for (int t = 0; t < args.taps; ++t) {
      const int at = c + t * 33;
      sum += team.in[at < kHidden ? at : at - kHidden] * static_cast<float>((expert * 7 + t * 3) % 16 - 8);
    }
    args.outputs[row * kHidden + c] = __float2bfloat16(sum / 64.0F);
  }
  team.meet();
}

/// Rows of all that there are, in turn.
__device__ void compute_all(const ExpertArgs& args, const Team& team) {
  const int step = static_cast<int>(gridDim.x) * kTeams;
  int next = team.number * static_cast<int>(gridDim.x) + static_cast<int>(blockIdx.x);
  int before = 0;
  for (int expert = 0; expert < args.num_experts; ++expert) {
    const int end = before + args.expert_counts[expert];
    for (; next < end; next += step) compute_row(args, expert * args.rows_per_expert + next - before, expert, team);
    before = end;
  }
}

/// How many rows of a source and an expert teams have taken. A claim also holds the number of their dispatch, so that
/// nobody clears it between replays.
__device__ std::uint32_t num_taken(std::uint32_t claim, std::uint32_t number) {
  return claim >> kCountBits == number << kCountBits >> kCountBits ? claim & ((1U << kCountBits) - 1) : 0;
}

/// The next of `count` rows that no team has taken, or -1.
__device__ int claim_row(std::uint32_t* claim, std::uint32_t number, std::int32_t count) {
  std::uint32_t seen = epistle::device::detail::load_relaxed(claim);
  while (true) {
    const std::uint32_t taken = num_taken(seen, number);
    if (taken >= static_cast<std::uint32_t>(count)) return -1;
    const std::uint32_t now = atomicCAS(claim, seen, (number << kCountBits) + taken + 1);
    if (now == seen) return static_cast<int>(taken);
    seen = now;
  }
}

/// What a team does next: a row, or nothing yet, or nothing any more.
struct Chosen {
  enum Kind : int { kRow, kNothingYet, kEnd } kind;
  int row;
  int expert;
};

/// A lane has every 32nd (source, expert), and takes a row of one that is there; the lanes take turns.
__device__ Chosen choose(const ExpertArgs& args, const Team& team, std::uint32_t number, std::uint32_t& left) {
  const epistle::device::RowFlags& flags = args.flags;
  const int lane = team.thread;
  int row = -1;
  int expert = -1;
  epistle::device::RowArrival rows{};
  int bit = -1;
  for (std::uint32_t rest = left; rest != 0 && bit < 0; rest &= rest - 1) {
    const int i = __ffs(static_cast<int>(rest)) - 1;
    const int unit = i * kWarp + lane;
    if (!epistle::device::try_rows(flags, number, unit / flags.num_local_experts, unit % flags.num_local_experts,
                                   rows)) {
      continue;
    }
    const std::uint32_t claim = epistle::device::detail::load_relaxed(args.claims + unit);
    if (num_taken(claim, number) < static_cast<std::uint32_t>(rows.count)) {
      bit = i;
    } else {
      left &= ~(1U << i);
    }
  }
  // Teams begin with other lanes, so that they do not all ask for the same rows.
  const std::uint32_t ready = __ballot_sync(~0U, bit >= 0);
  const int shift = (static_cast<int>(blockIdx.x) * kTeams + team.number) % kWarp;
  const std::uint32_t turned = __funnelshift_r(ready, ready, shift);
  if (turned != 0 && lane == (__ffs(static_cast<int>(turned)) - 1 + shift) % kWarp) {
    const int unit = bit * kWarp + lane;
    const int taken = claim_row(args.claims + unit, number, rows.count);
    if (taken >= 0) {
      row = rows.begin + taken;
      expert = unit % flags.num_local_experts;
    }
  }
  const std::uint32_t found = __ballot_sync(~0U, row >= 0);
  if (found != 0) {
    const int from = __ffs(static_cast<int>(found)) - 1;
    return {Chosen::kRow, __shfl_sync(~0U, row, from), __shfl_sync(~0U, expert, from)};
  }
  return {__any_sync(~0U, left != 0) != 0 ? Chosen::kNothingYet : Chosen::kEnd, -1, -1};
}

/// Takes rows as they come, and says of each when it is done.
__device__ void compute_as_rows_come(const ExpertArgs& args, const Team& team) {
  __shared__ Chosen chosen_of_team[kTeams];
  Chosen& chosen = chosen_of_team[team.number];
  const epistle::device::RowFlags& flags = args.flags;
  const bool chooses = team.thread < kWarp;
  const std::uint32_t number = epistle::device::current_number(flags);
  const std::uint64_t deadline_ns = epistle::device::row_clock_ns() + kPatienceNs;
  const int count = flags.num_ranks * flags.num_local_experts;
  std::uint32_t left = 0;
  for (int i = 0; chooses && i * kWarp + team.thread < count; ++i) left |= 1U << i;
  while (true) {
    if (chooses) {
      Chosen next = choose(args, team, number, left);
      while (next.kind == Chosen::kNothingYet) {
        const bool gives_up =
            epistle::device::row_clock_ns() > deadline_ns || epistle::device::detail::load_relaxed(flags.failed) != 0;
        if (__any_sync(~0U, gives_up) != 0) {
          if (team.thread == 0) atomicAdd(args.num_failed_waits, 1);
          next.kind = Chosen::kEnd;
          break;
        }
        next = choose(args, team, number, left);
      }
      if (team.thread == 0) chosen = next;
    }
    team.meet();
    const Chosen now = chosen;
    if (now.kind == Chosen::kEnd) return;
    compute_row(args, now.row, now.expert, team);
    // compute_row() has met behind its last element.
    if (chooses) epistle::device::mark_rows_done(flags, number, now.row, 1, team.thread, kWarp);
  }
}

__global__ void __launch_bounds__(kTeams* kTeamThreads, 1) experts_kernel(const ExpertArgs args) {
  extern __shared__ float shared[];
  const Team team(shared);
  if (args.flags.number != nullptr) {
    compute_as_rows_come(args, team);
  } else {
    compute_all(args, team);
  }
}

// ---- A rank ---------------------------------------------------------------------------------------------------------

class Rank {
 public:
  Rank(epistle::Group& group, const Settings& settings, int device)
      : group_(group),
        settings_(settings),
        plain_(group, "low_latency", config(settings), epistle::CudaOptions{.device = device}),
        flagged_(group, "low_latency", config(settings), epistle::CudaOptions{.device = device, .row_flags = true}) {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    check(cudaStreamCreateWithFlags(&experts_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    for (cudaEvent_t* event : {&sent_, &computed_, &began_, &ended_}) check(cudaEventCreate(event), "cudaEventCreate");
    std::vector<std::int32_t> ids;
    std::vector<float> weights;
    std::vector<__nv_bfloat16> tokens;
    std::uint64_t state = 12345U + static_cast<std::uint64_t>(group.rank());
    const auto random = [&state] {
      return static_cast<std::uint32_t>((state = state * 6364136223846793005U + 1) >> 33);
    };
    for (std::int64_t token = 0; token < settings.tokens; ++token) {
      const auto begin = static_cast<std::int64_t>(ids.size());
      while (static_cast<std::int64_t>(ids.size()) < begin + kTopK) {
        const auto id = static_cast<std::int32_t>(random() % kExperts);
        if (std::find(ids.begin() + begin, ids.end(), id) == ids.end()) ids.push_back(id);
      }
      for (int k = 0; k < kTopK; ++k) weights.push_back(static_cast<float>(1 + k) / 36.0F);
      for (std::int64_t c = 0; c < kHidden; ++c)
        tokens.push_back(__float2bfloat16(static_cast<float>(random() % 255) - 127));
    }
    ids_ = upload(ids);
    weights_ = upload(weights);
    tokens_ = upload(tokens);
    out_ = upload(tokens);
    claims_ = upload(std::vector<std::uint32_t>(kExperts, 0));
    num_failed_waits_ = upload(std::vector<int>{0});
    const auto weight_bytes = static_cast<std::size_t>(kSlices * settings.weight_kib * 1024);
    if (weight_bytes > 0) {
      check(cudaMalloc(&expert_weights_, weight_bytes), "cudaMalloc of the weights");
      check(cudaMemsetAsync(expert_weights_, 0x5a, weight_bytes, stream_), "cudaMemsetAsync");
      check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
    }
    int sms = 0;
    check(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
    int num_gpus = 0;
    check(cudaGetDeviceCount(&num_gpus), "cudaGetDeviceCount");
    sms_ = num_gpus >= kRanks ? sms : sms / kRanks;
    const int most = sms_ - 1;
    if (settings.comm_sms < 1 || settings.comm_sms > most) {
      throw epistle::Error(epistle::ErrorCode::kInvalidArgument,
                           "SMs beside the experts are 1 to " + std::to_string(most));
    }
    group_.barrier();
  }

  /// One call after the other, each within `num_sms` SMs (0: as it likes).
  epistle::Received step(int num_sms) {
    const epistle::Received received = plain_.dispatch(request(num_sms), stream_);
    launch(received, {}, num_sms > 0 ? sms_ - num_sms : sms_, stream_);
    plain_.combine({.received = received, .out = rows(out_), .num_sms = num_sms}, stream_);
    return received;
  }

  /// All at once.
  epistle::Received early_step() {
    epistle::Pending pending = flagged_.dispatch_send(request(settings_.comm_sms), stream_);
    check(cudaEventRecord(sent_, stream_), "cudaEventRecord");
    check(cudaStreamWaitEvent(experts_, sent_, 0), "cudaStreamWaitEvent");
    // What raises the flags is launched before what waits for them.
    const epistle::Received received = flagged_.dispatch_receive(std::move(pending), stream_);
    launch(received, received.row_flags(), sms_ - settings_.comm_sms, experts_);
    check(cudaEventRecord(computed_, experts_), "cudaEventRecord");
    flagged_.combine({.received = received, .out = rows(out_), .num_sms = settings_.comm_sms, .as_rows_finish = true},
                     stream_);
    check(cudaStreamWaitEvent(stream_, computed_, 0), "cudaStreamWaitEvent");
    return received;
  }

  struct Result {
    double step_us;
    std::vector<std::uint16_t> sums;
  };
  /// A step in a graph, replayed in a row.
  template <typename Step>
  Result measure(epistle::Dispatcher& dispatcher, const Step& make_step) {
    // Once without a graph, so that nothing is loaded for the first time while the stream is captured.
    make_step().release();
    finish(dispatcher);
    check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    const epistle::Received received = make_step();
    cudaGraph_t graph = nullptr;
    check(cudaStreamEndCapture(stream_, &graph), "cudaStreamEndCapture");
    cudaGraphExec_t exec = nullptr;
    check(cudaGraphInstantiate(&exec, graph, 0), "cudaGraphInstantiate");
    check(cudaMemsetAsync(out_, 0xff, static_cast<std::size_t>(num_values()) * 2, stream_), "cudaMemsetAsync");
    std::vector<double> times;
    for (int round = 0; round < kRounds; ++round) {
      finish(dispatcher);
      check(cudaGraphLaunch(exec, stream_), "cudaGraphLaunch");  // the ranks meet in it
      check(cudaEventRecord(began_, stream_), "cudaEventRecord");
      for (int i = 0; i < kReplays; ++i) check(cudaGraphLaunch(exec, stream_), "cudaGraphLaunch");
      check(cudaEventRecord(ended_, stream_), "cudaEventRecord");
      finish(dispatcher);
      float ms = 0.0F;
      check(cudaEventElapsedTime(&ms, began_, ended_), "cudaEventElapsedTime");
      times.push_back(1e3 * ms / kReplays);
    }
    std::sort(times.begin(), times.end());
    Result result{times[times.size() / 2], std::vector<std::uint16_t>(static_cast<std::size_t>(num_values()))};
    check(cudaMemcpyAsync(result.sums.data(), out_, result.sums.size() * 2, cudaMemcpyDeviceToHost, stream_),
          "cudaMemcpyAsync");
    finish(dispatcher);
    (void)cudaGraphExecDestroy(exec);
    (void)cudaGraphDestroy(graph);
    return result;
  }

  int run() {
    const Result all = measure(plain_, [&] { return step(0); });
    const Result within = measure(plain_, [&] { return step(settings_.comm_sms); });
    const Result early = measure(flagged_, [&] { return early_step(); });
    int failed_waits = 0;
    check(cudaMemcpyAsync(&failed_waits, num_failed_waits_, sizeof(int), cudaMemcpyDeviceToHost, stream_),
          "cudaMemcpyAsync");
    finish(flagged_);
    const bool same = all.sums == within.sums && all.sums == early.sums;
    std::printf(
        "rank %d: %lld tokens, %d products, %lld KiB of weights a row: a step takes %.1f us one call after the other, "
        "%.1f us within %d SMs, "
        "%.1f us with early starts within %d SMs: %.1f us saved, %.1f us against the same SMs; sums %s; %d waits "
        "failed\n",
        group_.rank(), static_cast<long long>(settings_.tokens), settings_.taps,
        static_cast<long long>(settings_.weight_kib), all.step_us, within.step_us, settings_.comm_sms, early.step_us,
        settings_.comm_sms, all.step_us - early.step_us, within.step_us - early.step_us,
        same ? "equal bit for bit" : "DIFFER", failed_waits);
    return same && failed_waits == 0 ? 0 : 1;
  }

 private:
  static epistle::DispatcherConfig config(const Settings& settings) {
    return {.hidden = kHidden,
            .num_experts = kExperts,
            .top_k = kTopK,
            .max_tokens = settings.tokens,
            .layout = epistle::ExpertBlocks{.rows_per_expert = kRanks * settings.tokens},
            .sizing = epistle::Capacity{},
            .zero_padding = false};
  }
  [[nodiscard]] std::int64_t num_values() const { return settings_.tokens * kHidden; }
  [[nodiscard]] epistle::Rows rows(void* data) const {
    return {.data = data, .num_rows = settings_.tokens, .hidden = kHidden, .dtype = epistle::DType::kBf16};
  }
  [[nodiscard]] epistle::DispatchRequest request(int num_sms) const {
    return {.expert_ids = {ids_, settings_.tokens, kTopK},
            .weights = weights_,
            .tokens = rows(tokens_),
            .num_sms = num_sms};
  }
  template <typename Value>
  Value* upload(const std::vector<Value>& values) {
    void* memory = nullptr;
    check(cudaMalloc(&memory, values.size() * sizeof(Value)), "cudaMalloc");
    check(cudaMemcpyAsync(memory, values.data(), values.size() * sizeof(Value), cudaMemcpyHostToDevice, stream_),
          "cudaMemcpyAsync");
    check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
    return static_cast<Value*>(memory);
  }
  void launch(const epistle::Received& received, const epistle::device::RowFlags& flags, int blocks,
              cudaStream_t stream) {
    const epistle::RowDescription& description = received.description();
    const ExpertArgs args{.flags = flags,
                          .rows = static_cast<const __nv_bfloat16*>(received.rows().data),
                          .outputs = static_cast<__nv_bfloat16*>(received.expert_outputs().data),
                          .expert_counts = description.expert_counts,
                          .rows_per_expert = description.num_rows / description.num_local_experts,
                          .num_experts = description.num_local_experts,
                          .taps = settings_.taps,
                          .weights = static_cast<const uint4*>(expert_weights_),
                          .slice_units = settings_.weight_kib * 1024 / static_cast<std::int64_t>(sizeof(uint4)),
                          .claims = claims_,
                          .num_failed_waits = num_failed_waits_};
    experts_kernel<<<static_cast<unsigned>(blocks), kTeams * kTeamThreads, kSharedBytes, stream>>>(args);
    check(cudaGetLastError(), "launching the experts");
  }
  void finish(epistle::Dispatcher& dispatcher) {
    dispatcher.wait();
    check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
    group_.barrier();
  }

  epistle::Group& group_;
  Settings settings_;
  epistle::Dispatcher plain_;
  epistle::Dispatcher flagged_;
  cudaStream_t stream_ = nullptr;
  cudaStream_t experts_ = nullptr;
  cudaEvent_t sent_ = nullptr;
  cudaEvent_t computed_ = nullptr;
  cudaEvent_t began_ = nullptr;
  cudaEvent_t ended_ = nullptr;
  std::int32_t* ids_ = nullptr;
  float* weights_ = nullptr;
  __nv_bfloat16* tokens_ = nullptr;
  __nv_bfloat16* out_ = nullptr;
  std::uint32_t* claims_ = nullptr;
  int* num_failed_waits_ = nullptr;
  void* expert_weights_ = nullptr;
  int sms_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  try {
    Settings settings;
    if (argc > 1) settings.comm_sms = std::atoi(argv[1]);
    if (argc > 2) settings.taps = std::atoi(argv[2]);
    if (argc > 3) settings.tokens = std::atoi(argv[3]);
    if (argc > 4) settings.weight_kib = std::atoi(argv[4]);
    constexpr std::int64_t kMostTokens = (1 << kCountBits) - 1;
    constexpr std::int64_t kMostWeights = std::int64_t{16} << 10;
    if (settings.taps < 1 || settings.tokens < 1 || settings.tokens > kMostTokens || settings.weight_kib < 0 ||
        settings.weight_kib > kMostWeights) {
      std::fprintf(stderr, "early_experts: products are at least 1, tokens 1 to %lld, and KiB of weights 0 to %lld\n",
                   static_cast<long long>(kMostTokens), static_cast<long long>(kMostWeights));
      return 2;
    }
    const epistle::CudaSupport support = epistle::cuda_support();
    if (support.num_devices == 0) {
      std::fprintf(stderr, "early_experts: needs a GPU: %s\n", support.reason.c_str());
      return kNoGpuExitCode;
    }
    const int num_devices = std::min(support.num_devices, kRanks);
    std::atomic<int> num_wrong{0};
    epistle::run_thread_ranks(kRanks, [&](epistle::Group& group) {
      const int device = group.rank() % num_devices;
      check(cudaSetDevice(device), "cudaSetDevice");
      // Not at the first launch: loading waits for running kernels, and those of another rank may wait for this one.
      cudaFuncAttributes attributes;
      check(cudaFuncGetAttributes(&attributes, experts_kernel), "cudaFuncGetAttributes");
      check(cudaFuncSetAttribute(experts_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes),
            "cudaFuncSetAttribute");
      Rank rank(group, settings, device);
      num_wrong += rank.run();
      group.barrier();
    });
    return num_wrong == 0 ? 0 : 1;
  } catch (const epistle::Error& error) {
    std::fprintf(stderr, "early_experts: %s\n", error.what());
    return 1;
  }
}
