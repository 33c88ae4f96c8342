// How the command ends. Scripts rely on these numbers: they never change their meaning.
#pragma once

#include <string_view>

#include "epistle/error.hpp"

namespace epistle::cli {

inline constexpr int kExitOk = 0;
inline constexpr int kExitFailed = 1;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitInput = 3;
inline constexpr int kExitPeerLost = 4;
inline constexpr int kExitSystem = 5;

[[nodiscard]] int exit_code_for(ErrorCode code) noexcept;

/// The list of exit codes, for --help.
[[nodiscard]] std::string_view exit_code_help() noexcept;

}  // namespace epistle::cli
