// Streams of the library: with an owner, or one for all; and what is asked of any stream.
#pragma once

#include <cuda_runtime_api.h>

namespace epistle::cuda {

enum class StreamPriority { kDefault, kLowest, kHighest };

/// A stream of this process on `device` that waits for no other one, so that it gets through while kernels of ranks
/// wait for each other. One of each priority for all who ask, made once and never destroyed: nothing that waits for a
/// rank may be put on it, and every further stream could share a hardware queue with one of a rank's, behind whose
/// waiting kernels nothing comes through. Throws what check_cuda() throws.
[[nodiscard]] cudaStream_t private_stream(int device, StreamPriority priority = StreamPriority::kDefault);

/// One more, of the device that is the current one when it is made; it waits for no other one either.
class OwnedStream {
 public:
  explicit OwnedStream(StreamPriority priority = StreamPriority::kDefault);
  ~OwnedStream();
  OwnedStream(const OwnedStream&) = delete;
  OwnedStream& operator=(const OwnedStream&) = delete;

  [[nodiscard]] cudaStream_t get() const noexcept { return stream_; }

 private:
  cudaStream_t stream_;
};

[[nodiscard]] bool is_capturing(cudaStream_t stream);

}  // namespace epistle::cuda
