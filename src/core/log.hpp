// Messages to stderr, one line each, with the rank in front. EPISTLE_LOG sets the level.
#pragma once

#include <string_view>

#include "core/settings.hpp"

namespace epistle {

/// Never throws: where the settings cannot be read, the default level counts.
[[nodiscard]] bool log_enabled(LogLevel level) noexcept;

/// Writes "epistle: warn: message" ("epistle[rank 3]: ..." in a launched process) in one write, so that lines of
/// several ranks do not mix.
void log_message(LogLevel level, std::string_view message) noexcept;

inline void log_error(std::string_view message) noexcept { log_message(LogLevel::kError, message); }
inline void log_warn(std::string_view message) noexcept { log_message(LogLevel::kWarn, message); }
inline void log_info(std::string_view message) noexcept { log_message(LogLevel::kInfo, message); }
inline void log_debug(std::string_view message) noexcept { log_message(LogLevel::kDebug, message); }

}  // namespace epistle
