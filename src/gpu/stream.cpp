#include "gpu/stream.hpp"

#include <map>
#include <mutex>
#include <utility>

#include "gpu/cuda_error.hpp"

namespace epistle::cuda {
namespace {

/// On the current device.
cudaStream_t make_stream(StreamPriority priority) {
  int value = 0;  // that of streams of which nothing is said
  if (priority != StreamPriority::kDefault) {
    int lowest = 0;
    int highest = 0;
    check_cuda(cudaDeviceGetStreamPriorityRange(&lowest, &highest), "asking for the priorities of streams");
    value = priority == StreamPriority::kLowest ? lowest : highest;
  }
  cudaStream_t stream = nullptr;
  check_cuda(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, value), "creating a stream");
  return stream;
}

}  // namespace

cudaStream_t private_stream(int device, StreamPriority priority) {
  static std::mutex mutex;
  static std::map<std::pair<int, StreamPriority>, cudaStream_t> streams;
  const std::lock_guard lock(mutex);
  const auto found = streams.find({device, priority});
  if (found != streams.end()) return found->second;
  const DeviceGuard guard(device);
  cudaStream_t stream = make_stream(priority);
  streams.emplace(std::pair{device, priority}, stream);
  return stream;
}

OwnedStream::OwnedStream(StreamPriority priority) : stream_(make_stream(priority)) {}
OwnedStream::~OwnedStream() { warn_cuda(cudaStreamDestroy(stream_), "destroying a stream"); }

bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check_cuda(cudaStreamIsCapturing(stream, &status), "asking whether the stream is being captured");
  return status != cudaStreamCaptureStatusNone;
}

}  // namespace epistle::cuda
