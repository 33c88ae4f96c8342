// Calls recorded into a CUDA graph.
#pragma once

#include <functional>

#include <cuda_runtime_api.h>

namespace epistle {

class CapturedGraph {
 public:
  /// Records what `body` puts on `stream`, and loads it onto the GPU; waits for that. Must not be the default stream.
  CapturedGraph(cudaStream_t stream, const std::function<void()>& body);
  ~CapturedGraph();
  CapturedGraph(const CapturedGraph&) = delete;
  CapturedGraph& operator=(const CapturedGraph&) = delete;

  void launch(cudaStream_t stream) const;

 private:
  cudaGraphExec_t executable_ = nullptr;
};

}  // namespace epistle
