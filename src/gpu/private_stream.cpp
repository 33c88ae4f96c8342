#include "gpu/private_stream.hpp"

#include <map>
#include <mutex>
#include <utility>

#include "gpu/cuda_error.hpp"

namespace epistle::cuda {

cudaStream_t private_stream(int device, StreamPriority priority) {
  static std::mutex mutex;
  static std::map<std::pair<int, StreamPriority>, cudaStream_t> streams;
  const std::lock_guard lock(mutex);
  const auto found = streams.find({device, priority});
  if (found != streams.end()) return found->second;
  const DeviceGuard guard(device);
  int value = 0;  // that of streams of which nothing is said
  if (priority == StreamPriority::kLowest) {
    check_cuda(cudaDeviceGetStreamPriorityRange(&value, nullptr), "asking for the priorities of streams");
  }
  cudaStream_t stream = nullptr;
  check_cuda(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, value), "creating the library's stream");
  streams.emplace(std::pair{device, priority}, stream);
  return stream;
}

}  // namespace epistle::cuda
