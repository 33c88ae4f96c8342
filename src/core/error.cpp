#include "epistle/error.hpp"

#include <fmt/format.h>

namespace epistle {
namespace {

std::string prefix_of(ErrorCode code, const Error::Context& context) {
  std::string text;
  if (context.rank >= 0) text += fmt::format("rank {}: ", context.rank);
  text += to_string(code);
  if (context.phase != Phase::kNone) text += fmt::format(" in {}", to_string(context.phase));
  text += ": ";
  return text;
}

}  // namespace

std::string_view to_string(ErrorCode code) noexcept {
  switch (code) {
    case ErrorCode::kOk:
      return "ok";
    case ErrorCode::kInvalidArgument:
      return "invalid argument";
    case ErrorCode::kUnsupported:
      return "unsupported";
    case ErrorCode::kShapeMismatch:
      return "shape mismatch";
    case ErrorCode::kCapacityExceeded:
      return "capacity exceeded";
    case ErrorCode::kBufferTooSmall:
      return "buffer too small";
    case ErrorCode::kHandleMismatch:
      return "handle mismatch";
    case ErrorCode::kPeerRejected:
      return "peer rejected its input";
    case ErrorCode::kPeerLost:
      return "peer lost";
    case ErrorCode::kTimeout:
      return "timeout";
    case ErrorCode::kCorruptInput:
      return "corrupt input";
    case ErrorCode::kNotFound:
      return "not found";
    case ErrorCode::kOutOfMemory:
      return "out of memory";
    case ErrorCode::kSystem:
      return "system error";
    case ErrorCode::kAborted:
      return "aborted";
    case ErrorCode::kMaskedOut:
      return "masked out";
    case ErrorCode::kVerificationFailed:
      return "verification failed";
  }
  return "unknown error";
}

std::string_view to_string(Phase phase) noexcept {
  switch (phase) {
    case Phase::kNone:
      return "none";
    case Phase::kRendezvous:
      return "rendezvous";
    case Phase::kCreate:
      return "create";
    case Phase::kBarrier:
      return "barrier";
    case Phase::kLayout:
      return "layout";
    case Phase::kDispatch:
      return "dispatch";
    case Phase::kCombine:
      return "combine";
  }
  return "unknown phase";
}

Error::Error(ErrorCode code, const std::string& message) : Error(code, message, Context{}) {}

Error::Error(ErrorCode code, const std::string& message, const Context& context)
    : std::runtime_error(prefix_of(code, context) + message),
      code_(code),
      context_(context),
      message_begin_(prefix_of(code, context).size()) {}

}  // namespace epistle
