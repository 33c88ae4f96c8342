// GPU memory of a dispatcher under test.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "epistle/cuda.hpp"

#include "support/device_arena.hpp"
#include "support/subject.hpp"
#include "support/test_memory.hpp"

namespace epistle::testing {

class CudaMemory final : public TestMemory {
 public:
  CudaMemory(int device, std::int64_t num_bytes) : device_(device), arena_(device, num_bytes) {}

  [[nodiscard]] DeviceArena& arena() noexcept { return arena_; }

  [[nodiscard]] Stream stream() const noexcept override { return arena_.stream(); }
  void begin_call() override {
    arena_.activate();
    arena_.reset();
  }
  [[nodiscard]] void* place(const void* host, std::int64_t num_bytes) override {
    return arena_.copy_in(host, num_bytes);
  }
  void read(void* host, const void* device, std::int64_t num_bytes) override {
    arena_.download(host, device, num_bytes);
  }
  void write(void* device, const void* host, std::int64_t num_bytes) override {
    arena_.upload(device, host, num_bytes);
  }
  void fill(void* device, std::byte value, std::int64_t num_bytes) override { arena_.fill(device, value, num_bytes); }
  void drain() noexcept override {
    (void)cudaSetDevice(device_);
    (void)cudaStreamSynchronize(arena_.stream());
  }

 private:
  int device_;
  DeviceArena arena_;
};

/// Options of a dispatcher on a GPU that is given and gives host memory.
[[nodiscard]] inline SubjectOptions on_cuda(const CudaOptions& cuda = {}, bool split_halves = false,
                                            std::int64_t arena_bytes = DeviceArena::kDefaultBytes) {
  return {.device = cuda, .split_halves = split_halves, .memory = [arena_bytes](int device) {
            return std::make_unique<CudaMemory>(device, arena_bytes);
          }};
}

}  // namespace epistle::testing
