// Memory of the device of a dispatcher under test, as tests use it: they make and look at everything on the host.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>

#include "epistle/stream.hpp"

namespace epistle::testing {

/// One rank's. Copies are done when the functions return.
class TestMemory {
 public:
  TestMemory() = default;
  virtual ~TestMemory() = default;
  TestMemory(const TestMemory&) = delete;
  TestMemory& operator=(const TestMemory&) = delete;

  /// The stream of the calls that use this memory.
  [[nodiscard]] virtual Stream stream() const noexcept = 0;
  /// Whatever was placed before may be overwritten from now on.
  virtual void begin_call() = 0;
  /// Host memory, where the device can use it: a copy, or the host's own. Null stays null.
  [[nodiscard]] virtual void* place(const void* host, std::int64_t num_bytes) = 0;
  virtual void read(void* host, const void* device, std::int64_t num_bytes) = 0;
  virtual void write(void* device, const void* host, std::int64_t num_bytes) = 0;
  virtual void fill(void* device, std::byte value, std::int64_t num_bytes) = 0;
  /// Waits for the stream, whatever became of it.
  virtual void drain() noexcept = 0;
};

class HostMemory final : public TestMemory {
 public:
  [[nodiscard]] Stream stream() const noexcept override { return {}; }
  void begin_call() override {}
  [[nodiscard]] void* place(const void* host, std::int64_t /*num_bytes*/) override {
    return const_cast<void*>(host);  // NOLINT(cppcoreguidelines-pro-type-const-cast): calls write what they may write
  }
  void read(void* host, const void* device, std::int64_t num_bytes) override {
    if (num_bytes > 0 && host != device) std::memcpy(host, device, static_cast<std::size_t>(num_bytes));
  }
  void write(void* device, const void* host, std::int64_t num_bytes) override { read(device, host, num_bytes); }
  void fill(void* device, std::byte value, std::int64_t num_bytes) override {
    if (num_bytes > 0) std::memset(device, std::to_integer<int>(value), static_cast<std::size_t>(num_bytes));
  }
  void drain() noexcept override {}
};

/// Makes the memory of a rank on the GPU of that ordinal (-1: the host).
using MemoryFactory = std::function<std::unique_ptr<TestMemory>(int device)>;

}  // namespace epistle::testing
