// What ranks announce when they start a call, and what follows when the announcements are all there. Plain values:
// every rank comes to the same verdict, because every rank sees the same words.
#pragma once

#include <cstdint>

#include "epistle/types.hpp"

namespace epistle::cuda {

/// What a rank does. Calls that must not meet have different kinds.
enum class DeviceCall : std::uint32_t {
  kNone,
  kPrepare,
  kPrepareAndDispatch,  ///< its first half; the second is a kDispatch
  kDispatch,
  kCombine,
  kCombineBackward,
  kDispatchBackward,  ///< without gradients of the weights
  kDispatchBackwardWithWeights,
  kDispatchBackwardAnyWeights,  ///< by a rank without rows and without tokens: goes with both
  kRejected,                    ///< in place of any call: this rank has refused its input
  kNumCalls,
};

// A word, from the top:
//
//   32 bits   epoch
//    1 bit    the rank's rows go by copy engine, and so are sent whatever the others announce
//    7 bits   call
//    3 bits   buffer: which of its copies of what calls receive into (kReceiveRows, kReceiveScales, kCombineRows) the
//             rank uses in this call; 0 where the call uses none
//   21 bits   the last ones of the epoch of the prepare that made the handle (0: none), which all ranks know alike,
//             whatever calls have failed before
//
// How a rank's rows travel and which buffer it uses are its own choice: the others follow it.
inline constexpr int kHandleBits = 21;
inline constexpr int kBufferBits = 3;
inline constexpr int kCallBits = 7;
inline constexpr int kCallShift = kHandleBits + kBufferBits;
static_assert(kCallShift + kCallBits + 1 == 32);
static_assert(static_cast<std::uint32_t>(DeviceCall::kNumCalls) < (1U << kCallBits));

inline constexpr std::uint64_t kHandleMask = (std::uint64_t{1} << kHandleBits) - 1;
inline constexpr std::uint64_t kBufferMask = ((std::uint64_t{1} << kBufferBits) - 1) << kHandleBits;
inline constexpr std::uint64_t kCallMask = (std::uint64_t{1} << kCallBits) - 1;
inline constexpr std::uint64_t kCopiesBit = std::uint64_t{1} << (kCallShift + kCallBits);
/// What a rank chooses for itself.
inline constexpr std::uint64_t kChoiceMask = kCopiesBit | kBufferMask;

/// Copies that a word can tell apart.
inline constexpr std::int32_t kMaxBuffers = 1 << kBufferBits;

[[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::uint64_t call_word(std::uint32_t epoch, DeviceCall call,
                                                                    std::uint32_t prepared,
                                                                    std::int32_t buffer = 0) noexcept {
  return (std::uint64_t{epoch} << 32) | (static_cast<std::uint64_t>(call) << kCallShift) |
         ((static_cast<std::uint64_t>(buffer) << kHandleBits) & kBufferMask) | (prepared & kHandleMask);
}
[[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::uint32_t epoch_of(std::uint64_t word) noexcept {
  return static_cast<std::uint32_t>(word >> 32);
}
[[nodiscard]] EPISTLE_HOST_DEVICE constexpr DeviceCall call_of(std::uint64_t word) noexcept {
  return static_cast<DeviceCall>((word >> kCallShift) & kCallMask);
}
[[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int32_t buffer_of(std::uint64_t word) noexcept {
  return static_cast<std::int32_t>((word & kBufferMask) >> kHandleBits);
}
[[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::uint32_t handle_of(std::uint64_t word) noexcept {
  return static_cast<std::uint32_t>(word & kHandleMask);
}
[[nodiscard]] EPISTLE_HOST_DEVICE constexpr bool copies(std::uint64_t word) noexcept {
  return (word & kCopiesBit) != 0;
}
[[nodiscard]] EPISTLE_HOST_DEVICE constexpr bool rejects(std::uint64_t word) noexcept {
  return call_of(word) == DeviceCall::kRejected;
}
[[nodiscard]] EPISTLE_HOST_DEVICE constexpr bool takes_any_weights(std::uint64_t word) noexcept {
  return call_of(word) == DeviceCall::kDispatchBackwardAnyWeights;
}

/// Whether two words differ in nothing but what every rank chooses for itself.
[[nodiscard]] EPISTLE_HOST_DEVICE constexpr bool same_but_choices(std::uint64_t a, std::uint64_t b) noexcept {
  return ((a ^ b) & ~kChoiceMask) == 0;
}

/// Whether two ranks may be in these calls at once.
[[nodiscard]] EPISTLE_HOST_DEVICE constexpr bool same_call(std::uint64_t a, std::uint64_t b) noexcept {
  if (same_but_choices(a, b)) return true;
  const auto is_backward = [](std::uint64_t word) {
    return call_of(word) == DeviceCall::kDispatchBackward ||
           call_of(word) == DeviceCall::kDispatchBackwardWithWeights || takes_any_weights(word);
  };
  return epoch_of(a) == epoch_of(b) && handle_of(a) == handle_of(b) && is_backward(a) && is_backward(b) &&
         (takes_any_weights(a) || takes_any_weights(b));
}

/// What all ranks together have announced.
struct Verdict {
  enum class Outcome : std::uint32_t { kAgreed, kRejected, kMismatch };
  Outcome outcome = Outcome::kAgreed;
  std::int32_t rank = -1;  ///< kMismatch: one of the two, the rank that asks where it can be
  std::int32_t peer = -1;  ///< the other one; kRejected: the first rank that refused
  std::uint64_t word = 0;  ///< of `rank`
  std::uint64_t peer_word = 0;
};

/// `words` is what all ranks have announced of this call. The outcome is the same for every rank that asks. (Volatile,
/// because peers have written them while this kernel ran.)
[[nodiscard]] EPISTLE_HOST_DEVICE inline Verdict judge(const volatile std::uint64_t* words, std::int32_t num_ranks,
                                                       std::int32_t own) {
  for (std::int32_t peer = 0; peer < num_ranks; ++peer) {
    if (rejects(words[peer])) return {Verdict::Outcome::kRejected, own, peer, words[own], words[peer]};
  }
  const auto differs_from = [&](std::int32_t rank) {
    for (std::int32_t peer = 0; peer < num_ranks; ++peer) {
      if (!same_call(words[rank], words[peer])) {
        return Verdict{Verdict::Outcome::kMismatch, rank, peer, words[rank], words[peer]};
      }
    }
    return Verdict{};
  };
  const Verdict from_own = differs_from(own);
  if (from_own.outcome != Verdict::Outcome::kAgreed || !takes_any_weights(words[own])) return from_own;
  // What goes with everything does not see that the others differ.
  for (std::int32_t rank = 0; rank < num_ranks; ++rank) {
    if (!takes_any_weights(words[rank])) return differs_from(rank);
  }
  return {};
}

}  // namespace epistle::cuda
