// Runs the built epistle command.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "support/subprocess.hpp"

namespace epistle::test {

inline const std::string kEpistle = EPISTLE_BINARY_DIR "/apps/epistle/epistle";

/// `epistle` with `arguments`.
[[nodiscard]] inline std::vector<std::string> epistle_command(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), kEpistle);
  return arguments;
}

/// `options` with the settings of whoever runs the tests removed.
[[nodiscard]] inline CommandOptions without_settings(CommandOptions options = {}) {
  for (const char* const name :
       {"EPISTLE_TIMEOUT_MS", "EPISTLE_SPIN_US", "EPISTLE_LOG", "EPISTLE_STREAM_BYTES", "EPISTLE_SIMD",
        "EPISTLE_DOMAIN_SIZE", "EPISTLE_CUDA_HEAP", "EPISTLE_NCCL_LIBRARY", "EPISTLE_INTERFACE", "EPISTLE_PORT",
        "EPISTLE_HOST_ID", "EPISTLE_JOB_SECRET", "EPISTLE_FABRIC_PROVIDER", "EPISTLE_FABRIC_NICS",
        "EPISTLE_DOMAIN_LINK", "EPISTLE_FABRIC_LIBRARY", "EPISTLE_FABRIC_GPU_MEMORY", "EPISTLE_NVLINK_FABRIC",
        "RANK"}) {
    options.unset.emplace_back(name);
  }
  return options;
}

[[nodiscard]] inline CommandResult run_epistle(std::vector<std::string> arguments, CommandOptions options = {}) {
  return run_command(epistle_command(std::move(arguments)), without_settings(std::move(options)));
}

[[nodiscard]] inline std::vector<std::string> split_lines(const std::string& text) {
  std::vector<std::string> lines;
  std::size_t begin = 0;
  for (std::size_t end = text.find('\n'); end != std::string::npos; end = text.find('\n', begin)) {
    lines.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  if (begin < text.size()) lines.push_back(text.substr(begin));
  return lines;
}

/// True where `err` is one line that starts with "epistle: error: " and contains `part`.
[[nodiscard]] inline bool is_error_line(const std::string& err, const std::string& part) {
  return err.starts_with("epistle: error: ") && err.find('\n') == err.size() - 1 && err.find(part) != std::string::npos;
}

}  // namespace epistle::test
