// What a migration of weights does to dispatch between two GPUs: `cuda_migration [SECONDS] [CHUNK_BYTES]`, for
// each of three sizes of a chunk, or one.
// Segments of dispatches take turns, with a migration beside them and without one. A segment is some batches of
// dispatches, each of which starts on both GPUs together; with a migration, a batch counts only if weights were still
// on their way when it ended, and none follows one that does not.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <cuda_runtime_api.h>

#include <fmt/format.h>

#include "epistle/cuda.hpp"
#include "epistle/dispatcher.hpp"
#include "epistle/group.hpp"
#include "epistle/migration.hpp"
#include "epistle/routing.hpp"

#include "gpu/cuda_error.hpp"
#include "measure/clock.hpp"
#include "measure/cuda/stream_gate.hpp"
#include "measure/cuda/timed_event.hpp"
#include "measure/statistics.hpp"
#include "migration_steps.hpp"
#include "report/format.hpp"
#include "report/table.hpp"

namespace epistle::bench {
namespace {

using cuda::check_cuda;

constexpr int kNumGpus = 2;
constexpr std::int32_t kGpuExperts = 32;
constexpr std::int32_t kGpuTopK = 8;
constexpr std::int32_t kGpuHidden = 7168;
constexpr std::int64_t kGpuTokens = 4096;
constexpr std::int64_t kGpuExpertBytes = 44040192;  // of DeepSeek-V3, fp8
constexpr int kGpuBatchSteps = 32;
constexpr int kGpuSegmentBatches = 12;

std::vector<std::vector<std::int32_t>> halves(bool exchanged) {
  std::vector<std::vector<std::int32_t>> slots(kNumGpus);
  for (std::int32_t expert = 0; expert < kGpuExperts; ++expert) {
    const bool second = (expert >= kGpuExperts / 2) != exchanged;
    slots[second ? 1 : 0].push_back(expert);
  }
  return slots;
}

WeightStoreConfig gpu_store_config(std::int64_t chunk_bytes) {
  WeightStoreConfig config;
  config.num_experts = kGpuExperts;
  config.expert_bytes = kGpuExpertBytes;
  config.slot_experts = halves(false);
  config.spare_slots = kGpuExperts / 2;
  config.chunk_bytes = chunk_bytes;
  return config;
}

DispatcherConfig gpu_dispatcher_config() {
  return {.hidden = kGpuHidden, .num_experts = kGpuExperts, .top_k = kGpuTopK, .max_tokens = kGpuTokens};
}

struct GpuTimes {
  SegmentTimes segments;
  double copy_us = 0.0;  ///< from begin to the last byte
  std::int64_t copied_bytes = 0;
  std::int64_t num_short = 0;  ///< segments in which no batch counts
};

class GpuStepper {
 public:
  GpuStepper(Group& group, std::int64_t chunk_bytes)
      : group_(group),
        stream_(make_stream(group.rank())),
        gate_(group, stream_),
        store_(group, gpu_store_config(chunk_bytes), CudaOptions{}),
        moe_(group, "direct", gpu_dispatcher_config(), CudaOptions{}) {
    const RoutingTable routing = generate_routing(RoutingSpec::parse("uniform"), {.num_tokens = kGpuTokens,
                                                                                  .num_experts = kGpuExperts,
                                                                                  .top_k = kGpuTopK,
                                                                                  .rank = group.rank(),
                                                                                  .num_ranks = kNumGpus,
                                                                                  .seed = 1});
    const std::size_t id_bytes = routing.expert_ids.size() * sizeof(routing.expert_ids[0]);
    check_cuda(cudaMalloc(&ids_, id_bytes), "allocating ids");
    check_cuda(cudaMemcpy(ids_, routing.expert_ids.data(), id_bytes, cudaMemcpyHostToDevice), "copying ids");
    const std::size_t row_bytes = static_cast<std::size_t>(kGpuTokens) * kGpuHidden * 2;
    check_cuda(cudaMalloc(&rows_, row_bytes), "allocating rows");
    check_cuda(cudaMemset(rows_, 0, row_bytes), "filling rows");
    check_cuda(cudaDeviceSynchronize(), "filling rows");
    group.barrier();
    handle_ = moe_.prepare({.expert_ids = {static_cast<const std::int32_t*>(ids_), kGpuTokens, kGpuTopK}}, stream_);
    moe_.wait();
    for (int idx = 0; idx < 2 * kGpuBatchSteps; ++idx) events_.push_back(std::make_unique<TimedEvent>());
  }

  void run_segment(bool moving, GpuTimes& times) {
    const double start = steady_now_us();
    if (moving) {
      exchanged_ = !exchanged_;
      (void)store_.begin(halves(exchanged_));
    }
    std::vector<double> own;
    for (int batch = 0; batch < kGpuSegmentBatches; ++batch) {
      launch_batch();
      if (!of_rank_zero(!moving || is_copying())) break;
      // The first one brings the ranks together.
      for (std::size_t idx = 1; idx < kGpuBatchSteps; ++idx) {
        own.push_back(events_[2 * idx + 1]->us_since(*events_[2 * idx]));
      }
    }
    if (own.empty()) {
      ++times.num_short;
    } else {
      (moving ? times.segments.moving_us : times.segments.quiet_us).push_back(std::move(own));
    }
    if (moving) finish_migration(start, times);
  }

  [[nodiscard]] bool is_over(double end_us) { return of_rank_zero(steady_now_us() >= end_us); }

 private:
  void launch_batch() {
    gate_.hold(kGpuBatchSteps);
    for (std::size_t idx = 0; idx < kGpuBatchSteps; ++idx) {
      (void)store_.advance(stream_);
      events_[2 * idx]->record(stream_);
      (void)moe_.dispatch({.handle = handle_, .tokens = {.data = rows_, .num_rows = kGpuTokens, .hidden = kGpuHidden}},
                          stream_);
      events_[2 * idx + 1]->record(stream_);
    }
    moe_.wait();
  }

  [[nodiscard]] bool is_copying() const {
    const MigrationStatus status = store_.status();
    return status.bytes_copied < status.bytes_into_rank;
  }

  void finish_migration(double start_us, GpuTimes& times) {
    while (is_copying()) {
    }
    times.copy_us += steady_now_us() - start_us;
    times.copied_bytes += store_.status().bytes_into_rank;
    while (of_rank_zero(store_.status().state == MigrationState::kCopying)) {
      (void)store_.advance(stream_);
    }
  }

  /// So that all ranks do the same; they meet here.
  [[nodiscard]] bool of_rank_zero(bool own) {
    bool all[kNumGpus] = {};
    group_.all_gather(&own, sizeof(own), static_cast<bool*>(all));
    return all[0];
  }

  static cudaStream_t make_stream(int device) {
    check_cuda(cudaSetDevice(device), "choosing a GPU");
    cudaStream_t stream = nullptr;
    check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "creating a stream");
    return stream;
  }

  Group& group_;
  cudaStream_t stream_;  // for as long as the program runs, as is the memory
  StreamGate gate_;
  WeightStore store_;
  Dispatcher moe_;
  Handle handle_;
  void* ids_ = nullptr;
  void* rows_ = nullptr;
  std::vector<std::unique_ptr<TimedEvent>> events_;
  bool exchanged_ = false;
};

GpuTimes measure_on_gpus(std::int64_t chunk_bytes, double seconds) {
  GpuTimes times;
  run_thread_ranks(kNumGpus, [&](Group& group) {
    GpuStepper stepper(group, chunk_bytes);
    GpuTimes own;
    for (int idx = 0; idx < 3; ++idx) stepper.run_segment(false, own);
    own = {};
    const double end_us = steady_now_us() + seconds * 1e6;
    while (!stepper.is_over(end_us)) {
      stepper.run_segment(false, own);
      stepper.run_segment(true, own);
    }
    if (group.rank() == 0) times = std::move(own);
    group.barrier();
  });
  return times;
}

void print_gpu_times(double seconds, const std::vector<std::int64_t>& chunks) {
  Table table({{"chunk", Align::kRight},
               {"calls", Align::kRight},
               {"dispatch p50", Align::kRight},
               {"moving", Align::kRight},
               {"p99", Align::kRight},
               {"moving", Align::kRight},
               {"of p99", Align::kRight},
               {"quiet of quiet", Align::kRight},
               {"GB/s into a rank", Align::kRight},
               {"too short", Align::kRight},
               {"goal", Align::kRight},
               {"met", Align::kLeft}});
  for (const std::int64_t chunk_bytes : chunks) {
    const GpuTimes times = measure_on_gpus(chunk_bytes, seconds);
    const std::vector<double> quiet = all_of(times.segments.quiet_us);
    const std::vector<double> moving = all_of(times.segments.moving_us);
    if (moving.empty()) {
      std::printf("chunks of %lld bytes: every migration was over before its segment\n",
                  static_cast<long long>(chunk_bytes));
      continue;
    }
    const RatioInterval interval = p99_ratio(times.segments.moving_us, times.segments.quiet_us);
    table.add_row({format_bytes(chunk_bytes), format_count(static_cast<std::int64_t>(moving.size())),
                   format_us(summarize(quiet).median), format_us(summarize(moving).median),
                   format_us(summarize(quiet).p99), format_us(summarize(moving).p99), to_text(interval),
                   to_text(noise_of(times.segments)),
                   fmt::format("{:.1f}", static_cast<double>(times.copied_bytes) / times.copy_us / 1e3),
                   format_count(times.num_short), fmt::format("{:.2f}", kP99Goal), std::string(verdict_on(interval))});
  }
  std::fputs(table.render().c_str(), stdout);
}

}  // namespace
}  // namespace epistle::bench

int main(int argc, char** argv) {
  constexpr double kDefaultSeconds = 5.0;
  const double seconds = argc > 1 ? std::strtod(argv[1], nullptr) : kDefaultSeconds;
  std::vector<std::int64_t> chunks = {std::int64_t{256} << 10, std::int64_t{1} << 20, std::int64_t{8} << 20};
  if (argc > 2) chunks = {std::strtoll(argv[2], nullptr, 10)};
  if (argc > 3 || !(seconds > 0.0) || chunks.front() <= 0) {
    std::fputs("usage: cuda_migration [SECONDS] [CHUNK_BYTES]\n", stderr);
    return 2;
  }
  if (epistle::cuda_support().num_devices < epistle::bench::kNumGpus) {
    std::fputs("cuda_migration needs two GPUs\n", stderr);
    return 77;
  }
  epistle::bench::print_gpu_times(seconds, chunks);
  return 0;
}
