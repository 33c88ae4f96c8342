// Steps of decoding in a CUDA graph: captured once, replayed with other tokens, another routing and another number of
// tokens every time. All of these are read when a replay runs.
//
// The ranks are threads of this process. With two GPUs each has its own, with one they share it ("virtual ranks"). The
// experts hand their rows back as they are, so a token must come back times the sum of its weights. The exit code is 77
// where there is no GPU.

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include <cuda_runtime_api.h>

#include "epistle/cuda.hpp"
#include "epistle/dispatcher.hpp"

namespace {

constexpr int kRanks = 2;
constexpr std::int32_t kExperts = 8;
constexpr std::int32_t kTopK = 2;
constexpr std::int64_t kMostTokens = 64;
constexpr std::int64_t kHidden = 256;
constexpr int kSteps = 5;
constexpr int kNoGpuExitCode = 77;  // ctest counts it as skipped

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw epistle::Error(epistle::ErrorCode::kSystem, std::string(what) + ": " + cudaGetErrorString(status));
}

// What a router and an attention layer have made for one step of a rank, on the host.
struct Step {
  std::int32_t num_tokens = 0;
  std::vector<std::int32_t> ids;
  std::vector<float> weights;
  std::vector<float> tokens;
};

Step make_step(int rank, int number) {
  Step step;
  step.num_tokens = (7 * (number + 1) + 13 * rank) % static_cast<std::int32_t>(kMostTokens + 1);
  for (std::int32_t token = 0; token < kMostTokens; ++token) {
    const std::int32_t first = (token + 3 * number + rank) % kExperts;
    step.ids.insert(step.ids.end(), {first, (first + 1 + token % 5) % kExperts});
    step.weights.insert(step.weights.end(), {0.5F, number % 2 == 0 ? 0.25F : 0.125F});
    // Whole numbers below 4096: their parts and sums are exact.
    for (std::int64_t column = 0; column < kHidden; ++column) {
      step.tokens.push_back(static_cast<float>((rank * 1024 + number * 97 + token * 31 + column) % 4096));
    }
  }
  return step;
}

// `count` values in the memory of the current device.
template <typename Value>
Value* allocate(std::int64_t count) {
  void* memory = nullptr;
  check(cudaMalloc(&memory, static_cast<std::size_t>(count) * sizeof(Value)), "cudaMalloc");
  return static_cast<Value*>(memory);
}

// Memory of a rank's GPU that a graph knows: one of everything.
class DeviceStep {
 public:
  DeviceStep() { check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags"); }
  ~DeviceStep() {
    for (void* const memory : {static_cast<void*>(num_tokens), static_cast<void*>(ids), static_cast<void*>(weights),
                               static_cast<void*>(tokens), static_cast<void*>(result)}) {
      (void)cudaFree(memory);
    }
    (void)cudaStreamDestroy(stream);
  }
  DeviceStep(const DeviceStep&) = delete;
  DeviceStep& operator=(const DeviceStep&) = delete;

  void fill(const Step& step) const {
    const auto copy = [this](void* to, const void* from, std::size_t num_bytes) {
      check(cudaMemcpyAsync(to, from, num_bytes, cudaMemcpyHostToDevice, stream), "cudaMemcpyAsync");
    };
    copy(num_tokens, &step.num_tokens, sizeof(step.num_tokens));
    copy(ids, step.ids.data(), step.ids.size() * sizeof(std::int32_t));
    copy(weights, step.weights.data(), step.weights.size() * sizeof(float));
    copy(tokens, step.tokens.data(), step.tokens.size() * sizeof(float));
  }
  [[nodiscard]] static epistle::Rows rows_of(float* values) {
    return {.data = values, .num_rows = kMostTokens, .hidden = kHidden, .dtype = epistle::DType::kFp32};
  }

  cudaStream_t stream = nullptr;
  std::int32_t* num_tokens = allocate<std::int32_t>(1);
  std::int32_t* ids = allocate<std::int32_t>(kMostTokens * kTopK);
  float* weights = allocate<float>(kMostTokens * kTopK);
  float* tokens = allocate<float>(kMostTokens * kHidden);
  float* result = allocate<float>(kMostTokens * kHidden);
};

// Dispatch, experts and combine, on the stream. The weights come late, as with DeepEP's low-latency kernels.
epistle::Received run_layer(epistle::Dispatcher& moe, const DeviceStep& device) {
  epistle::Received in = moe.dispatch({.expert_ids = {device.ids, kMostTokens, kTopK},
                                       .num_tokens = device.num_tokens,
                                       .tokens = DeviceStep::rows_of(device.tokens)},
                                      device.stream);
  // A masked GEMM would run here, over in.rows() and in.expert_counts(), into in.expert_outputs().
  moe.combine({.received = in, .rows = in.rows(), .weights = device.weights, .out = DeviceStep::rows_of(device.result)},
              device.stream);
  return in;
}

int count_wrong(const Step& step, const std::vector<float>& result) {
  int num_wrong = 0;
  for (std::int64_t token = 0; token < kMostTokens; ++token) {
    const auto first = static_cast<std::size_t>(token * kTopK);
    // Tokens beyond the number come back as zeros.
    const float factor = token < step.num_tokens ? step.weights[first] + step.weights[first + 1] : 0.0F;
    for (std::int64_t column = 0; column < kHidden; ++column) {
      const auto idx = static_cast<std::size_t>(token * kHidden + column);
      if (result[idx] != factor * step.tokens[idx]) ++num_wrong;
    }
  }
  return num_wrong;
}

// What each rank runs. Returns the number of wrong elements.
int run_rank(epistle::Group& group, int num_devices) {
  const int ordinal = group.rank() % num_devices;
  check(cudaSetDevice(ordinal), "cudaSetDevice");
  const DeviceStep device;
  // It takes low_latency, as no call can have more tokens than that is best for.
  epistle::Dispatcher moe(group, "auto",
                          {.hidden = kHidden,
                           .num_experts = kExperts,
                           .top_k = kTopK,
                           .max_tokens = kMostTokens,
                           .input = epistle::DType::kFp32,
                           .layout = epistle::ExpertBlocks{.rows_per_expert = kRanks * kMostTokens},
                           .sizing = epistle::Capacity{},
                           .order = epistle::SumOrder::kFlat},
                          epistle::CudaOptions{.device = ordinal});
  const Step first = make_step(group.rank(), 0);
  device.fill(first);
  run_layer(moe, device).release();  // once without a graph, so that nothing is loaded while the stream is captured
  moe.wait();
  group.barrier();

  check(cudaStreamBeginCapture(device.stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
  const epistle::Received in = run_layer(moe, device);  // lives as long as the graph
  cudaGraph_t graph = nullptr;
  check(cudaStreamEndCapture(device.stream, &graph), "cudaStreamEndCapture");
  cudaGraphExec_t replay = nullptr;
  check(cudaGraphInstantiate(&replay, graph, 0), "cudaGraphInstantiate");

  int num_wrong = 0;
  for (int number = 0; number < kSteps; ++number) {
    const Step step = make_step(group.rank(), number);
    device.fill(step);
    check(cudaGraphLaunch(replay, device.stream), "cudaGraphLaunch");
    moe.wait();
    std::vector<float> result(step.tokens.size());
    check(cudaMemcpyAsync(result.data(), device.result, result.size() * sizeof(float), cudaMemcpyDeviceToHost,
                          device.stream),
          "cudaMemcpyAsync");
    check(cudaStreamSynchronize(device.stream), "cudaStreamSynchronize");
    num_wrong += count_wrong(step, result);
  }
  group.barrier();  // from here on no rank has a call under way
  (void)cudaGraphExecDestroy(replay);
  (void)cudaGraphDestroy(graph);
  std::printf("rank %d: %d replays, %d elements wrong\n", group.rank(), kSteps, num_wrong);
  return num_wrong;
}

}  // namespace

int main() {
  try {
    // Before anything else of CUDA: it makes room for ranks that share a GPU.
    const epistle::CudaSupport support = epistle::cuda_support();
    if (support.num_devices == 0) {
      std::fprintf(stderr, "decode_graph: needs a GPU: %s\n", support.reason.c_str());
      return kNoGpuExitCode;
    }
    const int num_devices = std::min(support.num_devices, kRanks);
    std::atomic<int> num_wrong{0};
    epistle::run_thread_ranks(kRanks, [&](epistle::Group& group) { num_wrong += run_rank(group, num_devices); });
    return num_wrong == 0 ? 0 : 1;
  } catch (const epistle::Error& error) {
    std::fprintf(stderr, "decode_graph: %s\n", error.what());
    return 1;
  }
}
