// What a rank announces when it takes part in a collective step, so that ranks that do different things at once find
// out, all in the same way, before anything has moved.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string>

#include "epistle/error.hpp"

namespace epistle {

/// Every collective step of a group and of its dispatchers.
enum class CallKind : std::int32_t {
  kNone,
  kBarrier,
  kFormDomains,
  kAllGather,
  kCreateRegion,
  kExchangeDescriptors,
  kAskForMemory,
  kCreateDispatcher,
  kSetUpGpu,
  kGpuCall,
  kSetPlacement,
  kPrepare,
  kDispatch,
  kCombine,
  kDispatchBackward,
  kCombineBackward,
  kCreateWeightStore,
  kBeginMigration,
  kSetMask,  ///< of ranks that have found that others make another call (GroupImpl::set_mask)
};

/// A value that agrees with every other.
inline constexpr std::int64_t kAnyValue = -1;

/// A step of this rank. Everything but the buffer must be equal on all ranks.
struct Call {
  CallKind kind = CallKind::kNone;
  std::int32_t buffer = 0;          ///< which of its buffers the rank uses: its own choice, which the others must know
  std::uint64_t subject = 0;        ///< number of the dispatcher, 0 = the group itself
  std::uint64_t detail = 0;         ///< number of the handle, or bytes
  std::int32_t step = 0;            ///< of a call that has several
  std::int32_t gathered_bytes = 0;  ///< what the rank has put into its gather slot for this step
  std::int64_t value = kAnyValue;   ///< calls of dispatchers: 1 = gradients of the weights are given, 0 = they are not

  /// Equal for two calls only where these are equal, buffers included; 0 where it does not fit, or where the ranks have
  /// a value to agree on. For the barrier, which tells whether all ranks have come with the same.
  [[nodiscard]] std::uint64_t in_a_word() const noexcept;

  /// "prepare (dispatcher 1, handle 2)".
  [[nodiscard]] std::string describe() const;
};

/// The steps in which ranks take GPU memory and tell each other of it.
inline constexpr Call kGpuSetUp{.kind = CallKind::kSetUpGpu};

/// A call as it lies in shared memory, with what this rank has to say against it.
struct CallPost {
  std::uint32_t ticket = 0;  ///< the generation of the barrier that it was made for
  ErrorCode status = ErrorCode::kOk;
  Call call;
  bool blames_another = false;      ///< what the rank complains of is another rank's doing: that one knows better
  std::array<char, 456> message{};  ///< why the rank refuses, where it does
};
static_assert(sizeof(CallPost) == 512);

}  // namespace epistle
