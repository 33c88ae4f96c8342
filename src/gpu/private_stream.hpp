// The library's own streams on a device.
#pragma once

#include <cuda_runtime_api.h>

namespace epistle::cuda {

enum class StreamPriority { kDefault, kLowest };

/// A stream of this process on `device` that waits for no other one, so that it gets through while kernels of ranks
/// wait for each other. One of each priority for all who ask, made once and never destroyed: nothing that waits for a
/// rank may be put on it, and every further stream could share a hardware queue with one of a rank's, behind whose
/// waiting kernels nothing comes through. Throws what check_cuda() throws.
[[nodiscard]] cudaStream_t private_stream(int device, StreamPriority priority = StreamPriority::kDefault);

}  // namespace epistle::cuda
