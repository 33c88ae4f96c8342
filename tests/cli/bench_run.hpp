// Runs `epistle bench` in a size that takes a moment.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "cli/epistle_command.hpp"

namespace epistle::test {

/// `epistle bench` with `options` behind a small shape; an option given again wins over none of these, so leave out
/// what is here already.
[[nodiscard]] inline std::vector<std::string> bench_arguments(const std::vector<std::string>& options) {
  std::vector<std::string> arguments = {"bench",    "--hidden", "64",      "--experts", "12",       "--top-k", "3",
                                        "--tokens", "20",       "--iters", "2",         "--warmup", "0"};
  arguments.insert(arguments.end(), options.begin(), options.end());
  return arguments;
}

[[nodiscard]] inline CommandResult run_bench(const std::vector<std::string>& options, CommandOptions command = {}) {
  return run_epistle(bench_arguments(options), std::move(command));
}

/// The JSON of a run that must succeed.
[[nodiscard]] inline nlohmann::json bench_json(std::vector<std::string> options) {
  options.emplace_back("--json");
  options.emplace_back("-");
  const CommandResult result = run_bench(options);
  EXPECT_EQ(result.exit_code, 0) << result.describe();
  return nlohmann::json::parse(result.out, nullptr, false);
}

[[nodiscard]] inline bool has_line_starting_with(const std::string& text, const std::string& start) {
  for (const std::string& line : split_lines(text)) {
    if (line.starts_with(start)) return true;
  }
  return false;
}

}  // namespace epistle::test
