#include "gpu/private_stream.hpp"

#include <map>
#include <mutex>

#include "gpu/cuda_error.hpp"

namespace epistle::cuda {

cudaStream_t private_stream(int device) {
  static std::mutex mutex;
  static std::map<int, cudaStream_t> streams;
  const std::lock_guard lock(mutex);
  const auto found = streams.find(device);
  if (found != streams.end()) return found->second;
  const DeviceGuard guard(device);
  cudaStream_t stream = nullptr;
  check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "creating the library's stream");
  streams.emplace(device, stream);
  return stream;
}

}  // namespace epistle::cuda
