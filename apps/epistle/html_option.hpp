// The option --html FILE of the commands that have it.
#pragma once

#include <string>

#include <CLI/CLI.hpp>

namespace epistle::cli {

/// Sets `target`, which must live as long as `command`.
void add_html_option(CLI::App& command, std::string& target);

/// Where the results of a command go besides the table on standard output.
struct ResultTargets {
  std::string json;  ///< empty = nowhere; "-" = standard output, instead of the table
  std::string html;

  [[nodiscard]] bool leave_stdout() const noexcept;
  /// Throws kSystem where a result cannot be written to where it is to go, kUnsupported where this build makes no
  /// reports, and kInvalidArgument where two results go to one place.
  void check() const;
};

}  // namespace epistle::cli
