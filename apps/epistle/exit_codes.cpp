#include "exit_codes.hpp"

namespace epistle::cli {

int exit_code_for(ErrorCode code) noexcept {
  switch (code) {
    case ErrorCode::kOk:
      return kExitOk;
    case ErrorCode::kVerificationFailed:
    case ErrorCode::kCapacityExceeded:
      return kExitFailed;
    case ErrorCode::kInvalidArgument:
    case ErrorCode::kShapeMismatch:
    case ErrorCode::kBufferTooSmall:
    case ErrorCode::kHandleMismatch:
    case ErrorCode::kPeerRejected:
      return kExitUsage;
    case ErrorCode::kCorruptInput:
    case ErrorCode::kNotFound:
      return kExitInput;
    case ErrorCode::kPeerLost:
    case ErrorCode::kTimeout:
    case ErrorCode::kAborted:
    case ErrorCode::kMaskedOut:
      return kExitPeerLost;
    case ErrorCode::kUnsupported:
    case ErrorCode::kOutOfMemory:
    case ErrorCode::kSystem:
      return kExitSystem;
  }
  return kExitSystem;
}

std::string_view exit_code_help() noexcept {
  return "Exit codes:\n"
         "  0  success\n"
         "  1  the work failed: an output differs from the reference, a capacity was exceeded\n"
         "  2  wrong usage or an invalid argument\n"
         "  3  an input was not found or is corrupt\n"
         "  4  another rank was lost or did not arrive in time\n"
         "  5  not supported here, or the system refused (memory, files, processes)";
}

}  // namespace epistle::cli
