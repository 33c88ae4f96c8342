// The error of a call that is given what it cannot use.
#pragma once

#include <string>

#include "epistle/error.hpp"

namespace epistle {

[[noreturn]] inline void reject(const std::string& message) { throw Error(ErrorCode::kInvalidArgument, message); }

}  // namespace epistle
