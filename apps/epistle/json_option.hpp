// The option --json FILE of the commands that have it.
#pragma once

#include <string>

#include <CLI/CLI.hpp>

#include "not_empty.hpp"

namespace epistle::cli {

/// Sets `target`, which must live as long as `command`. An empty name, as an unset variable of a script gives it, is an
/// error: it would write nothing.
inline void add_json_option(CLI::App& command, std::string& target) {
  command.add_option("--json", target, "Write JSON to FILE; '-' = standard output, instead of the table")
      ->check(not_empty())
      ->type_name("FILE");
}

}  // namespace epistle::cli
