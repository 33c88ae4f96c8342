#include "core/log.hpp"

#include <cerrno>
#include <cstdlib>
#include <exception>
#include <string>

#include <unistd.h>

#include <fmt/format.h>

namespace epistle {
namespace {

const std::string& line_prefix() {
  static const std::string prefix = [] {
    const char* const rank = std::getenv("RANK");
    return rank != nullptr && *rank != '\0' ? fmt::format("epistle[rank {}]", rank) : std::string("epistle");
  }();
  return prefix;
}

void write_stderr(std::string_view text) noexcept {
  while (!text.empty()) {
    const ssize_t written = ::write(STDERR_FILENO, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return;  // there is nowhere left to report this
    text.remove_prefix(static_cast<std::size_t>(written));
  }
}

}  // namespace

bool log_enabled(LogLevel level) noexcept {
  LogLevel limit = LogLevel::kWarn;
  try {
    limit = settings().log_level();
  } catch (const std::exception&) {
    // A malformed setting is reported by whoever needs its value; logging must work until then.
  }
  return level != LogLevel::kOff && level <= limit;
}

void log_message(LogLevel level, std::string_view message) noexcept {
  if (!log_enabled(level)) return;
  try {
    write_stderr(fmt::format("{}: {}: {}\n", line_prefix(), to_string(level), message));
  } catch (const std::exception&) {
    write_stderr(message);  // out of memory: the bare message still says more than silence
  }
}

}  // namespace epistle
