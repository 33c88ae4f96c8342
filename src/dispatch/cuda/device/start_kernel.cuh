// Puts a kernel on a stream.
#pragma once

#include <cstddef>
#include <cstdint>

#include <cuda_runtime_api.h>

namespace epistle::cuda {

struct Grid {
  int num_blocks;
  int num_threads;
  std::int64_t shared_bytes = 0;
};

/// `early`: the kernel may start while the one before it on the stream ends, and waits for that itself
/// (wait_for_kernel_before): its launch is not a part of the stream's time. For sm_90 and later. It takes no SM from a
/// kernel that waits for a peer: unless that says otherwise, all its blocks have ended by then.
template <typename Args>
cudaError_t start_kernel(void (*kernel)(Args), const Grid& grid, bool early, const Args& args, cudaStream_t stream) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(grid.num_blocks));
  config.blockDim = dim3(static_cast<unsigned>(grid.num_threads));
  config.dynamicSmemBytes = static_cast<std::size_t>(grid.shared_bytes);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = early ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, args);
}

}  // namespace epistle::cuda
