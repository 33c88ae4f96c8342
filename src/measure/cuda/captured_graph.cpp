#include "measure/cuda/captured_graph.hpp"

#include "gpu/cuda_error.hpp"
#include "measure/cuda/gpu_memory.hpp"

namespace epistle {
namespace {

/// Records `body`; a recording that fails is ended as well, so that the stream stays usable.
cudaGraph_t record(cudaStream_t stream, const std::function<void()>& body) {
  // Other threads of the process (other ranks) may do what they want meanwhile.
  cuda::check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "begin to record a CUDA graph");
  cudaGraph_t graph = nullptr;
  try {
    body();
  } catch (...) {
    static_cast<void>(cudaStreamEndCapture(stream, &graph));
    if (graph != nullptr) static_cast<void>(cudaGraphDestroy(graph));
    static_cast<void>(cudaGetLastError());
    throw;
  }
  cuda::check_cuda(cudaStreamEndCapture(stream, &graph), "record a CUDA graph");
  return graph;
}

}  // namespace

CapturedGraph::CapturedGraph(cudaStream_t stream, const std::function<void()>& body) {
  cudaGraph_t graph = record(stream, body);
  const cudaError_t status = cudaGraphInstantiate(&executable_, graph, 0);
  cuda::warn_cuda(cudaGraphDestroy(graph), "destroy a CUDA graph");
  cuda::check_cuda(status, "make a CUDA graph executable");
  cudaError_t uploaded = cudaGraphUpload(executable_, stream);
  if (uploaded == cudaSuccess) uploaded = cudaStreamSynchronize(stream);
  if (uploaded == cudaSuccess) return;
  cuda::warn_cuda(cudaGraphExecDestroy(executable_), "destroy a CUDA graph");
  cuda::check_cuda(uploaded, "load a CUDA graph onto the GPU");
}

CapturedGraph::~CapturedGraph() { cuda::warn_cuda(cudaGraphExecDestroy(executable_), "destroy a CUDA graph"); }

void CapturedGraph::launch(cudaStream_t stream) const {
  cuda::check_cuda(cudaGraphLaunch(executable_, stream), "launch a CUDA graph");
}

}  // namespace epistle
