// One rank's memory and stream on a GPU, all of it taken up front: ranks that share a GPU wait for each other inside
// their kernels, so while a collective call is under way nothing may synchronise the whole device (cudaMalloc,
// cudaFree, cudaMemcpy, the default stream).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <cuda_runtime_api.h>

#include <fmt/format.h>

#include "epistle/error.hpp"

namespace epistle::testing {

inline void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw Error(ErrorCode::kSystem,
              fmt::format("{} failed: {} ({})", what, cudaGetErrorString(status), cudaGetErrorName(status)));
}

struct FreeOnDevice {
  void operator()(std::byte* memory) const noexcept { (void)cudaFree(memory); }
};
struct FreeOnHost {
  void operator()(std::byte* memory) const noexcept { (void)cudaFreeHost(memory); }
};

/// Streams of ranks, kept for the next rank that asks: those of ranks that share a GPU must not share a hardware queue,
/// and streams that are created while others are destroyed sometimes do.
class StreamPool {
 public:
  [[nodiscard]] static StreamPool& instance() {
    // Never destroyed: the CUDA runtime may be gone before static destructors run.
    static auto* pool = new StreamPool();
    return *pool;
  }
  [[nodiscard]] cudaStream_t take(int device) {
    const std::lock_guard lock(mutex_);
    const auto found = free_.find(device);
    if (found != free_.end()) return free_.extract(found).mapped();
    cudaStream_t stream = nullptr;
    check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    return stream;
  }
  void give(int device, cudaStream_t stream) {
    const std::lock_guard lock(mutex_);
    free_.emplace(device, stream);
  }

 private:
  std::mutex mutex_;
  std::multimap<int, cudaStream_t> free_;
};

struct GiveStreamBack {
  int device = 0;
  void operator()(cudaStream_t stream) const { StreamPool::instance().give(device, stream); }
};

/// A bump allocator over one piece of device memory, and copies through pinned memory that are ordered by a stream of
/// its own. Calls come from one thread. Created and destroyed while no rank has a call under way.
class DeviceArena {
 public:
  static constexpr std::int64_t kDefaultBytes = std::int64_t{64} << 20;

  DeviceArena(int device, std::int64_t num_bytes) : device_(device), num_bytes_(num_bytes) {
    activate();
    void* memory = nullptr;
    check_cuda(cudaMalloc(&memory, static_cast<std::size_t>(num_bytes)), "cudaMalloc");
    memory_.reset(static_cast<std::byte*>(memory));
    check_cuda(cudaHostAlloc(&memory, static_cast<std::size_t>(kStagingBytes), cudaHostAllocDefault), "cudaHostAlloc");
    staging_.reset(static_cast<std::byte*>(memory));
    stream_ = {StreamPool::instance().take(device), GiveStreamBack{device}};
  }

  [[nodiscard]] cudaStream_t stream() const noexcept { return stream_.get(); }

  /// Makes the device the current one of the calling thread.
  void activate() const { check_cuda(cudaSetDevice(device_), "cudaSetDevice"); }

  void synchronize() const { check_cuda(cudaStreamSynchronize(stream_.get()), "cudaStreamSynchronize"); }

  /// Takes back everything that was taken.
  void reset() noexcept { used_bytes_ = 0; }

  /// Memory for `num_bytes`, never null.
  [[nodiscard]] std::byte* take(std::int64_t num_bytes) {
    const std::int64_t rounded =
        (std::max<std::int64_t>(num_bytes, 1) + kAlignmentBytes - 1) / kAlignmentBytes * kAlignmentBytes;
    if (rounded > num_bytes_ - used_bytes_) {
      throw Error(ErrorCode::kOutOfMemory,
                  fmt::format("the test's device arena has {} bytes, {} are in use and {} more were asked for; give "
                              "this test a larger arena",
                              num_bytes_, used_bytes_, rounded));
    }
    std::byte* const taken = memory_.get() + used_bytes_;
    used_bytes_ += rounded;
    return taken;
  }

  /// A copy of host memory; null stays null.
  [[nodiscard]] std::byte* copy_in(const void* host, std::int64_t num_bytes) {
    if (host == nullptr) return nullptr;
    std::byte* const taken = take(num_bytes);
    upload(taken, host, num_bytes);
    return taken;
  }

  /// These three return when the copy is done.
  void upload(void* target, const void* host, std::int64_t num_bytes) {
    for_chunks(num_bytes, [&](std::int64_t offset, std::size_t chunk_bytes) {
      std::memcpy(staging_.get(), static_cast<const std::byte*>(host) + offset, chunk_bytes);
      copy(static_cast<std::byte*>(target) + offset, staging_.get(), chunk_bytes, cudaMemcpyHostToDevice);
    });
  }
  void download(void* host, const void* source, std::int64_t num_bytes) {
    for_chunks(num_bytes, [&](std::int64_t offset, std::size_t chunk_bytes) {
      copy(staging_.get(), static_cast<const std::byte*>(source) + offset, chunk_bytes, cudaMemcpyDeviceToHost);
      std::memcpy(static_cast<std::byte*>(host) + offset, staging_.get(), chunk_bytes);
    });
  }
  void fill(void* target, std::byte value, std::int64_t num_bytes) {
    for_chunks(num_bytes, [&](std::int64_t offset, std::size_t chunk_bytes) {
      std::memset(staging_.get(), std::to_integer<int>(value), chunk_bytes);
      copy(static_cast<std::byte*>(target) + offset, staging_.get(), chunk_bytes, cudaMemcpyHostToDevice);
    });
  }

  /// `count` values of device memory.
  template <typename Value>
  [[nodiscard]] std::vector<Value> read(const Value* source, std::int64_t count) {
    std::vector<Value> values(static_cast<std::size_t>(count));
    download(values.data(), source, count * static_cast<std::int64_t>(sizeof(Value)));
    return values;
  }

 private:
  static constexpr std::int64_t kAlignmentBytes = 256;  // what cudaMalloc gives
  static constexpr std::int64_t kStagingBytes = std::int64_t{1} << 20;

  template <typename Copy>
  static void for_chunks(std::int64_t num_bytes, const Copy& copy_chunk) {
    for (std::int64_t offset = 0; offset < num_bytes; offset += kStagingBytes) {
      copy_chunk(offset, static_cast<std::size_t>(std::min(kStagingBytes, num_bytes - offset)));
    }
  }

  void copy(void* target, const void* source, std::size_t num_bytes, cudaMemcpyKind kind) {
    check_cuda(cudaMemcpyAsync(target, source, num_bytes, kind, stream_.get()), "cudaMemcpyAsync");
    synchronize();
  }

  int device_;
  std::int64_t num_bytes_;
  std::int64_t used_bytes_ = 0;
  std::unique_ptr<std::byte, FreeOnDevice> memory_;
  std::unique_ptr<std::byte, FreeOnHost> staging_;
  std::unique_ptr<CUstream_st, GiveStreamBack> stream_;
};

}  // namespace epistle::testing
