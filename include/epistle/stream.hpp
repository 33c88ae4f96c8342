// A stream of work on a GPU.
#pragma once

struct CUstream_st;

namespace epistle {

/// A cudaStream_t, which it is made from without a word; owns nothing. Default: the default stream of the device. The
/// host has no streams.
class Stream {
 public:
  constexpr Stream() noexcept = default;
  constexpr Stream(CUstream_st* stream) noexcept : stream_(stream) {}  // NOLINT(*-explicit-*)

  [[nodiscard]] constexpr CUstream_st* get() const noexcept { return stream_; }

 private:
  CUstream_st* stream_ = nullptr;
};

}  // namespace epistle
