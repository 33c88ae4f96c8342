// What a warp that sends rows remembers until it may tell of them.
#pragma once

#include <cstdint>

namespace epistle::cuda {

/// Tokens of one warp whose receivers have not been told yet, oldest first, each with the copier's mark behind its
/// rows.
class UnflaggedTokens {
 public:
  [[nodiscard]] __device__ int count() const { return static_cast<int>(added_ - taken_); }
  [[nodiscard]] __device__ bool full() const { return count() == kRoom; }
  __device__ void add(std::int64_t token, std::uint32_t mark) {
    // Without indices that the compiler cannot know, so that it stays in registers.
#pragma unroll
    for (unsigned i = 0; i < kRoom; ++i) {
      if (i != added_ % kRoom) continue;
      tokens_[i] = static_cast<std::int32_t>(token);
      marks_[i] = mark;
    }
    ++added_;
  }
  [[nodiscard]] __device__ std::uint32_t oldest_mark() const { return at(marks_); }
  __device__ std::int32_t take_oldest() {
    const std::int32_t token = at(tokens_);
    ++taken_;
    return token;
  }

 private:
  static constexpr unsigned kRoom = 8;
  template <typename Value>
  __device__ Value at(const Value (&values)[kRoom]) const {
    Value value{};
#pragma unroll
    for (unsigned i = 0; i < kRoom; ++i) {
      if (i == taken_ % kRoom) value = values[i];
    }
    return value;
  }

  std::int32_t tokens_[kRoom] = {};
  std::uint32_t marks_[kRoom] = {};
  unsigned added_ = 0;
  unsigned taken_ = 0;
};

}  // namespace epistle::cuda
