// Typed errors. Every failure that a caller can meet is an epistle::Error: what was expected, what was found, on which
// rank, and what to do about it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>

#include "epistle/export.hpp"

namespace epistle {

enum class ErrorCode : std::int32_t {
  kOk = 0,
  kInvalidArgument,     ///< a value outside its documented range; nothing was sent
  kUnsupported,         ///< a valid request that this build, device or group cannot serve
  kShapeMismatch,       ///< ranks disagree on a shape or an option; nothing was sent
  kCapacityExceeded,    ///< more rows than the configured capacity, under OverflowPolicy::kError; nothing was sent
  kBufferTooSmall,      ///< a caller's buffer cannot hold the result
  kHandleMismatch,      ///< a handle of another dispatcher, or one that was never prepared
  kPeerRejected,        ///< another rank rejected its own input in this collective call; nothing was sent
  kPeerLost,            ///< another rank exited, was killed, or left the group
  kTimeout,             ///< another rank is alive but did not arrive in time
  kCorruptInput,        ///< a file (a trace) that is truncated or malformed
  kNotFound,            ///< a file or a name that does not exist
  kOutOfMemory,         ///< memory could not be reserved
  kSystem,              ///< an operating system call failed
  kVerificationFailed,  ///< an output bit differs from the reference
  kAborted,             ///< a rank has called Dispatcher::abort
  kMaskedOut,           ///< the other ranks go on without this one (Group::set_mask)
};

/// The step of a collective call in which a failure was seen.
enum class Phase : std::int32_t {
  kNone = 0,
  kRendezvous,  ///< ranks find each other
  kCreate,      ///< a dispatcher is created: configurations are compared, memory is mapped
  kBarrier,     ///< Group::barrier, Group::all_gather
  kLayout,      ///< counts are exchanged, rows get their places
  kDispatch,    ///< payload moves to the experts
  kCombine,     ///< expert outputs move back
};

[[nodiscard]] EPISTLE_API std::string_view to_string(ErrorCode code) noexcept;
[[nodiscard]] EPISTLE_API std::string_view to_string(Phase phase) noexcept;

class EPISTLE_API Error : public std::runtime_error {
 public:
  struct Context {
    int rank = -1;                   ///< the rank that reports; -1 when there is no group
    int peer_rank = -1;              ///< the rank at fault, where it is another one
    Phase phase = Phase::kNone;      ///< where it happened
    std::int64_t missing_rows = -1;  ///< rows that `peer_rank` still owed to `rank`; -1 when not known
  };

  Error(ErrorCode code, const std::string& message);
  Error(ErrorCode code, const std::string& message, const Context& context);

  [[nodiscard]] ErrorCode code() const noexcept { return code_; }
  [[nodiscard]] const Context& context() const noexcept { return context_; }
  /// what() without the rank, the code and the phase that stand before it there.
  [[nodiscard]] std::string_view message() const noexcept { return std::string_view(what()).substr(message_begin_); }

 private:
  ErrorCode code_;
  Context context_;
  std::size_t message_begin_;
};

}  // namespace epistle
