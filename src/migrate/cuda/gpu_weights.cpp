// Weights in GPU memory that all ranks of the group address; each rank's copy engines pull what it needs.
#include <algorithm>
#include <cstddef>
#include <utility>

#include <cuda_runtime_api.h>

#include "core/complaint.hpp"
#include "dispatch/cuda/engine/cuda_engine.hpp"
#include "gpu/cuda_error.hpp"
#include "gpu/event.hpp"
#include "gpu/heap/symmetric_heap.hpp"
#include "gpu/stream.hpp"
#include "migrate/weight_memory.hpp"

namespace epistle::migrate {
namespace {

using cuda::check_cuda;

/// The cores are those of ranks.
cuda::Event make_event(int device) {
  const cuda::DeviceGuard guard(device);
  return cuda::Event(cuda::EventKind::kSleeping);
}

std::int64_t largest_of(const std::vector<std::int64_t>& values) {
  return *std::max_element(values.begin(), values.end());
}

class GpuWeights final : public WeightMemory {
 public:
  GpuWeights(GroupImpl& group, int device, const std::vector<std::int64_t>& bytes_of_rank)
      : device_(device),
        stream_(cuda::private_stream(device, cuda::StreamPriority::kLowest)),
        heap_(group, device, largest_of(bytes_of_rank)),
        copied_(make_event(device)),
        free_(make_event(device)) {
    std::vector<cuda::HeapRange> ranges;
    const std::int64_t unit = heap_.granularity();
    for (std::size_t rank = 0; rank < bytes_of_rank.size(); ++rank) {
      const std::int64_t bytes = (bytes_of_rank[rank] + unit - 1) / unit * unit;
      ranges.push_back({.rank = static_cast<int>(rank), .offset = 0, .num_bytes = bytes});
    }
    heap_.commit(ranges);
  }

  [[nodiscard]] std::byte* base(int rank) const noexcept override { return heap_.base(rank); }

  void begin_thread() override { check_cuda(cudaSetDevice(device_), "choosing the GPU of the copying thread"); }

  void wait_for_free_places() override { free_.wait("waiting for places that are free"); }

  void copy(std::byte* destination, const std::byte* source, std::size_t num_bytes) override {
    check_cuda(cudaMemcpyAsync(destination, source, num_bytes, cudaMemcpyDefault, stream_), "copying weights");
    copied_.record(stream_);
    copied_.wait("copying weights");
  }

  void free_behind(Stream stream) override {
    const cuda::DeviceGuard guard(device_);
    free_.record(stream.get());
  }

 private:
  int device_;
  cudaStream_t stream_;
  cuda::SymmetricHeap heap_;
  cuda::Event copied_;  ///< of the copying thread alone
  cuda::Event free_;
};

}  // namespace

std::unique_ptr<WeightMemory> make_gpu_weights(GroupImpl& group, const CudaOptions& options,
                                               const std::vector<std::int64_t>& bytes_of_rank) {
  int device = 0;
  const Complaint complaint = attempt([&] { device = cuda::choose_device(options, group); });
  (void)group.agree({.kind = CallKind::kCreateWeightStore, .step = 2}, Phase::kCreate, complaint);
  std::unique_ptr<WeightMemory> weights;
  group.take_together({.kind = CallKind::kCreateWeightStore, .step = 3}, Phase::kCreate,
                      [&] { weights = std::make_unique<GpuWeights>(group, device, bytes_of_rank); });
  return weights;
}

}  // namespace epistle::migrate
