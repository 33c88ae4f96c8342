// The option --json of commands whose report is mostly read by programs: without a name it writes to standard output.
#pragma once

#include <string>

#include <CLI/CLI.hpp>

#include "output.hpp"

namespace epistle::cli {

/// Sets `target`, which must live as long as `command`.
inline void add_optional_json_option(CLI::App& command, std::string& target) {
  const auto set = [&target](const CLI::results_t& values) {
    target =
        values.empty() || values.front().empty() || values.front() == "true" ? std::string(kStdout) : values.front();
    return true;
  };
  command
      .add_option("--json", set,
                  "Write JSON to FILE; without a name, or for '-', to standard output, instead of the text")
      ->expected(0, 1)
      ->type_name("[FILE]");
}

}  // namespace epistle::cli
