// One dispatch and one combine between two ranks whose rows are in GPU memory.
//
// The ranks are threads of this process. With two GPUs each has its own, with one they share it ("virtual ranks").
// Every token goes to one expert of rank 0 with weight 0.5 and to one of rank 1 with weight 0.25; the experts hand
// their rows back as they are, so a token must come back as 0.75 of itself. The exit code is 77 where there is no GPU.

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
constexpr int kSms = 8;
constexpr std::int32_t kExpertsPerRank = 4;
constexpr std::int32_t kTopK = 2;
constexpr std::int64_t kTokens = 256;
constexpr std::int64_t kHidden = 1024;
constexpr std::int64_t kCheckedToken = 17;
constexpr int kNoGpuExitCode = 77;  // ctest counts it as skipped

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw epistle::Error(epistle::ErrorCode::kSystem, std::string(what) + ": " + cudaGetErrorString(status));
}

// A stream that waits for no other: ranks that share a GPU wait for each other in their kernels.
class Stream {
 public:
  Stream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags"); }
  ~Stream() { (void)cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  [[nodiscard]] cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

// `count` values in the memory of the current device.
template <typename Value>
class DeviceArray {
 public:
  explicit DeviceArray(std::size_t count) : num_bytes_(count * sizeof(Value)) {
    check(cudaMalloc(&data_, num_bytes_), "cudaMalloc");
  }
  DeviceArray(const std::vector<Value>& values, cudaStream_t stream) : DeviceArray(values.size()) {
    check(cudaMemcpyAsync(data_, values.data(), num_bytes_, cudaMemcpyHostToDevice, stream), "cudaMemcpyAsync");
    check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
  }
  ~DeviceArray() { (void)cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  [[nodiscard]] Value* get() const { return static_cast<Value*>(data_); }

 private:
  void* data_ = nullptr;
  std::size_t num_bytes_;
};

epistle::Rows rows_of(const DeviceArray<float>& values) {
  return {.data = values.get(), .num_rows = kTokens, .hidden = kHidden, .dtype = epistle::DType::kFp32};
}

// Integers below 8192: 0.5, 0.25 and 0.75 of them are exact in fp32.
float element(int rank, std::int64_t token, std::int64_t column) {
  return static_cast<float>(rank * 4096 + (token * 31 + column) % 4096);
}

// What a rank's router says: an expert of either rank for every token.
void fill_routing(std::vector<std::int32_t>& expert_ids, std::vector<float>& weights) {
  for (std::int64_t token = 0; token < kTokens; ++token) {
    const auto local_expert = static_cast<std::int32_t>(token % kExpertsPerRank);
    expert_ids.push_back(local_expert);
    expert_ids.push_back(kExpertsPerRank + local_expert);
    weights.push_back(0.5F);
    weights.push_back(0.25F);
  }
}

// What each rank runs. Returns the number of wrong elements of the token that it looks at.
int run_rank(epistle::Group& group, int num_devices) {
  const int device = group.rank() % num_devices;
  check(cudaSetDevice(device), "cudaSetDevice");

  // Memory is allocated before the first call of any rank, and freed after the last one of all ranks.
  const Stream stream;
  std::vector<std::int32_t> expert_ids;
  std::vector<float> weights;
  fill_routing(expert_ids, weights);
  std::vector<float> tokens;
  for (std::int64_t token = 0; token < kTokens; ++token) {
    for (std::int64_t column = 0; column < kHidden; ++column) tokens.push_back(element(group.rank(), token, column));
  }
  const DeviceArray device_ids(expert_ids, stream.get());
  const DeviceArray device_weights(weights, stream.get());
  const DeviceArray device_tokens(tokens, stream.get());
  const DeviceArray<float> device_result(tokens.size());

  epistle::Dispatcher moe(group, "direct",
                          {.hidden = kHidden,
                           .num_experts = kRanks * kExpertsPerRank,
                           .top_k = kTopK,
                           .max_tokens = kTokens,
                           .input = epistle::DType::kFp32,
                           .layout = epistle::TokenMajor{},
                           // Static shapes: the host waits for nothing.
                           .sizing = epistle::Capacity{.rows_per_rank = kRanks * kTokens}},
                          epistle::CudaOptions{.device = device, .num_sms = kSms});
  group.barrier();

  const epistle::Received received = moe.dispatch({.expert_ids = {device_ids.get(), kTokens, kTopK},
                                                   .weights = device_weights.get(),
                                                   .tokens = rows_of(device_tokens)},
                                                  stream.get());
  // Experts would run here, on the same stream, over the received rows into received.expert_outputs().
  moe.combine({.received = received, .rows = received.rows(), .out = rows_of(device_result)}, stream.get());

  moe.wait();       // also throws what went wrong on the device
  group.barrier();  // from here on no rank has a call under way

  std::vector<float> row(static_cast<std::size_t>(kHidden));
  check(cudaMemcpy(row.data(), device_result.get() + kCheckedToken * kHidden, row.size() * sizeof(float),
                   cudaMemcpyDeviceToHost),
        "cudaMemcpy");
  int num_wrong = 0;
  for (std::int64_t column = 0; column < kHidden; ++column) {
    const float expected = 0.75F * element(group.rank(), kCheckedToken, column);
    if (row[static_cast<std::size_t>(column)] != expected) ++num_wrong;
  }
  std::printf("rank %d on GPU %d, %d SMs asked for: sent %lld rows, %d elements of token %lld wrong\n", group.rank(),
              moe.device_ordinal(), kSms, static_cast<long long>(received.handle().wait_stats().sent_rows), num_wrong,
              static_cast<long long>(kCheckedToken));
  if (group.rank() == 0) std::printf("%s", moe.describe_tuning(kTokens).c_str());
  return num_wrong;
}

}  // namespace

int main() {
  try {
    // Before anything else of CUDA: it makes room for ranks that share a GPU.
    const epistle::CudaSupport support = epistle::cuda_support();
    if (support.num_devices == 0) {
      std::fprintf(stderr, "cuda_round_trip: needs a GPU: %s\n", support.reason.c_str());
      return kNoGpuExitCode;
    }
    const int num_devices = std::min(support.num_devices, kRanks);
    std::atomic<int> num_wrong{0};
    epistle::run_thread_ranks(kRanks, [&](epistle::Group& group) { num_wrong += run_rank(group, num_devices); });
    return num_wrong == 0 ? 0 : 1;
  } catch (const epistle::Error& error) {
    std::fprintf(stderr, "cuda_round_trip: %s\n", error.what());
    return 1;
  }
}
