#include "measure/cuda/link_probe.hpp"

#include <algorithm>
#include <optional>

#include "gpu/cuda_error.hpp"
#include "measure/bench_collector.hpp"
#include "measure/cuda/bench_kernels.hpp"
#include "measure/cuda/gpu_memory.hpp"
#include "measure/cuda/stream_timer.hpp"
#include "measure/statistics.hpp"

namespace epistle {
namespace {

// Several times the L2 of any GPU, and long enough for the start of the kernel not to matter.
constexpr std::int64_t kBufferBytes = std::int64_t{256} << 20;
// Ranks on one GPU share that, down to this.
constexpr std::int64_t kMinBufferBytes = std::int64_t{32} << 20;
constexpr int kFewSms = 16;
constexpr int kNumWarmups = 5;
constexpr int kNumSamples = 20;

/// Where the memory of the rank that this one stores to is.
struct BufferPost {
  void* pointer = nullptr;  ///< ranks that are threads
  cudaIpcMemHandle_t handle{};
};

/// The next rank's buffer, as this rank reaches it.
class PeerBuffer {
 public:
  PeerBuffer(Group& group, const DeviceMemory& own, const std::vector<RankDevice>& devices);
  ~PeerBuffer() {
    if (mapped_) cuda::warn_cuda(cudaIpcCloseMemHandle(pointer_), "close the peer's memory");
  }
  PeerBuffer(const PeerBuffer&) = delete;
  PeerBuffer& operator=(const PeerBuffer&) = delete;

  [[nodiscard]] void* pointer() const noexcept { return pointer_; }

 private:
  void* pointer_ = nullptr;
  bool mapped_ = false;
};

PeerBuffer::PeerBuffer(Group& group, const DeviceMemory& own, const std::vector<RankDevice>& devices) {
  const bool processes = group.kind() == GroupKind::kProcesses;
  BufferPost post{.pointer = own.as()};
  if (processes) cuda::check_cuda(cudaIpcGetMemHandle(&post.handle, own.as()), "share memory with the next rank");
  std::vector<BufferPost> posts(static_cast<std::size_t>(group.size()));
  group.all_gather(&post, sizeof(post), posts.data());
  const auto next = static_cast<std::size_t>((group.rank() + 1) % group.size());
  if (processes) {
    cuda::check_cuda(cudaIpcOpenMemHandle(&pointer_, posts[next].handle, cudaIpcMemLazyEnablePeerAccess),
                     "map the next rank's memory");
    mapped_ = true;
    return;
  }
  const cudaError_t status = cudaDeviceEnablePeerAccess(devices[next].ordinal, 0);
  if (status == cudaErrorPeerAccessAlreadyEnabled) {
    static_cast<void>(cudaGetLastError());  // not for the next launch to report
  } else {
    cuda::check_cuda(status, "reach the next rank's GPU");
  }
  pointer_ = posts[next].pointer;
}

/// Bytes per second that this rank and every other one store.
double measure_rate(StreamTimer& timer, cudaStream_t stream, const LinkStore& store) {
  std::vector<double> times_us;
  for (int sample = 0; sample < kNumWarmups + kNumSamples; ++sample) {
    const double time_us =
        timer.time([&] { cuda::check_cuda(launch_link_store(stream, store), "launch the store kernel"); },
                   [&] { wait_for_stream(stream); });
    if (sample >= kNumWarmups) times_us.push_back(time_us);
  }
  const double median_us = summarize(times_us).median;
  return median_us > 0.0 ? static_cast<double>(store.num_bytes) / (median_us / kMicrosPerSecond) : 0.0;
}

}  // namespace

std::vector<RankDevice> gather_devices(Group& group) {
  RankDevice own;
  cuda::check_cuda(cudaGetDevice(&own.ordinal), "ask for the current GPU");
  cuda::check_cuda(cudaDeviceGetAttribute(&own.num_sms, cudaDevAttrMultiProcessorCount, own.ordinal),
                   "ask for the number of SMs");
  own.uuid = cuda::uuid_of(own.ordinal);
  std::vector<RankDevice> devices(static_cast<std::size_t>(group.size()));
  group.all_gather(&own, sizeof(own), devices.data());
  return devices;
}

int count_gpus(const std::vector<RankDevice>& devices) {
  int num_gpus = 0;
  for (auto device = devices.begin(); device != devices.end(); ++device) {
    const bool seen =
        std::any_of(devices.begin(), device, [&](const RankDevice& other) { return other.uuid == device->uuid; });
    num_gpus += seen ? 0 : 1;
  }
  return num_gpus;
}

LinkLimit measure_link_limit(Group& group, cudaStream_t stream, const std::vector<RankDevice>& devices) {
  const int num_gpus = count_gpus(devices);
  const bool remote = group.size() > 1 && num_gpus == group.size();
  const std::int64_t num_sharing = (group.size() + num_gpus - 1) / num_gpus;
  LinkLimit limit;
  limit.kind = remote ? "peer stores" : "local stores";
  // The same on all ranks, as rates are compared with it.
  limit.all_sms = std::min_element(devices.begin(), devices.end(), [](const RankDevice& a, const RankDevice& b) {
                    return a.num_sms < b.num_sms;
                  })->num_sms;
  limit.few_sms = std::min(kFewSms, limit.all_sms);
  limit.buffer_bytes = std::max(kMinBufferBytes, kBufferBytes / num_sharing);

  const DeviceMemory source(limit.buffer_bytes);
  const DeviceMemory target(limit.buffer_bytes);
  fill_device(stream, source.as(), std::byte{1}, limit.buffer_bytes);
  wait_for_stream(stream);
  {
    std::optional<PeerBuffer> peer;
    if (remote) peer.emplace(group, target, devices);
    group.barrier();  // everything is mapped before the first kernel runs
    StreamTimer timer(group, stream);
    LinkStore store{
        .source = source.as(), .target = peer ? peer->pointer() : target.as(), .num_bytes = limit.buffer_bytes};
    store.num_sms = limit.few_sms;
    limit.bytes_per_s_few_sms = measure_rate(timer, stream, store);
    store.num_sms = limit.all_sms;
    limit.bytes_per_s_all_sms = measure_rate(timer, stream, store);
  }
  group.barrier();  // nobody maps this rank's memory any longer
  return limit;
}

}  // namespace epistle
