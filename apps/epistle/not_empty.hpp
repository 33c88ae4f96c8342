// Names of files may not be empty: an unset variable of a script would write nothing, and say nothing.
#pragma once

#include <string>

#include <CLI/CLI.hpp>

namespace epistle::cli {

[[nodiscard]] inline CLI::Validator not_empty() {
  return CLI::Validator(
      [](const std::string& text) { return text.empty() ? std::string("must not be empty") : std::string(); }, "");
}

}  // namespace epistle::cli
