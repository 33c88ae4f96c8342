// Ways for a rank to fail, and a buffer whose first access makes it fail: that is how it fails inside a call.
#pragma once

#include <cstddef>

namespace epistle::testing {

enum class Fault {
  kKill,  ///< SIGKILL
  kStop,  ///< SIGSTOP; goes on where it was after SIGCONT
  kExit,  ///< the process ends of itself
};

/// Lets the calling process fail; returns only from kStop, when it was resumed.
void fail_now(Fault fault);

/// Memory without access. The first access calls fail_now; after that the memory can be read and written. One at a
/// time in a process.
class FaultingBuffer {
 public:
  FaultingBuffer(std::size_t num_bytes, Fault fault);
  ~FaultingBuffer();
  FaultingBuffer(const FaultingBuffer&) = delete;
  FaultingBuffer& operator=(const FaultingBuffer&) = delete;

  [[nodiscard]] std::byte* data() const noexcept { return data_; }

 private:
  std::byte* data_;
};

}  // namespace epistle::testing
