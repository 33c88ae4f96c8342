#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "epistle/version.hpp"

#include "cli/epistle_command.hpp"
#include "support/python.hpp"

namespace epistle::test {
namespace {

TEST(Usage, VersionIsThatOfTheLibrary) {
  const CommandResult result = run_epistle({"--version"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.out, "epistle " EPISTLE_VERSION_STRING "\n");
  EXPECT_EQ(result.err, "");
}

TEST(Usage, HelpListsCommandsExamplesAndExitCodes) {
  const CommandResult result = run_epistle({"--help"});
  EXPECT_EQ(result.exit_code, 0);
  for (const char* const part : {"run ", "trace ", "models ", "settings ", "Examples:", "Exit codes:"}) {
    EXPECT_NE(result.out.find(part), std::string::npos) << part << "\n" << result.out;
  }
}

TEST(Usage, EveryCommandHasHelp) {
  for (const char* const name : {"run", "trace", "models", "settings"}) {
    const CommandResult result = run_epistle({name, "--help"});
    EXPECT_EQ(result.exit_code, 0) << name;
    EXPECT_NE(result.out.find("Usage: epistle " + std::string(name)), std::string::npos) << result.out;
  }
}

TEST(Usage, WrongUsageIsOneLineAndExitCodeTwo) {
  const std::vector<std::vector<std::string>> cases = {{},
                                                       {"unknown"},
                                                       {"models", "--unknown"},
                                                       {"models", "one", "two"},
                                                       {"models", "--json"},
                                                       {"models", "--json", ""},
                                                       {"trace", "file", "--json", ""},
                                                       {"trace"},
                                                       {"trace", "file", "--layer", "x"},
                                                       {"trace", "file", "--layer", "-1"},
                                                       {"trace", "file", "--top", "0"},
                                                       {"run", "--", "true"},
                                                       {"run", "-n", "0", "--", "true"},
                                                       {"run", "-n", "100000", "--", "true"},
                                                       {"run", "-n", "2"},
                                                       {"run", "-n", "2", "--"},
                                                       {"run", "-n", "2", "true"},
                                                       {"run", "-n", "2", "--unknown", "--", "true"},
                                                       {"run", "-n", "2", "--grace", "-1", "--", "true"}};
  for (const auto& arguments : cases) {
    const CommandResult result = run_epistle(arguments);
    std::string command;
    for (const std::string& argument : arguments) command += argument + " ";
    EXPECT_EQ(result.exit_code, 2) << command << result.describe();
    EXPECT_TRUE(is_error_line(result.err, "")) << command << result.describe();
    EXPECT_EQ(result.out, "") << command;
  }
}

TEST(Usage, SwitchesTakeNoValue) {
  for (const char* const value : {"", "false", "0", "-1", "18446744073709551616", "yes"}) {
    for (const std::vector<std::string>& command :
         {std::vector<std::string>{"bench", "--list", "--no-verify"}, {"simulate", "--near"}, {"tune", "--gemm"}}) {
      std::vector<std::string> arguments = command;
      arguments.back() += std::string("=") + value;
      const CommandResult result = run_epistle(arguments);
      EXPECT_EQ(result.exit_code, 2) << result.describe();
      EXPECT_TRUE(is_error_line(result.err, command.back() + " takes no value")) << result.describe();
    }
  }
}

TEST(Usage, UnknownCommandsAreNamedWithThoseThereAre) {
  const std::string commands =
      "; the commands are run, bench, compare, tune, trace, balance, calibrate, doctor, models, plan, simulate, "
      "select, settings; "
      "see 'epistle --help'";
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{"frobnicate"}, "unknown command 'frobnicate'" + commands},
      {{"Bench", "--ranks", "2"}, "unknown command 'Bench'" + commands},
      {{""}, "unknown command ''" + commands},
      {{std::string(100000, 'x')}, "unknown command '" + std::string(60, 'x') + "...'" + commands},
      {{}, "no command is given" + commands},
      {{"--frobnicate"}, "unknown option '--frobnicate' before a command"}};
  for (const auto& [arguments, message] : cases) {
    const CommandResult result = run_epistle(arguments);
    EXPECT_EQ(result.exit_code, 2) << message;
    EXPECT_TRUE(is_error_line(result.err, "epistle: error: " + message)) << result.err;
  }
}

TEST(Usage, RepeatedOptionsAreNamed) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{"bench", "--ranks", "2", "--seed", "1", "--ranks", "3"}, "--ranks is given twice; give it once"},
      {{"bench", "--tokens", "2", "--tokens", "2", "--tokens", "2"}, "--tokens is given 3 times; give it once"},
      {{"bench", "--routing", "uniform", "--routing", "balanced"}, "--routing is given twice"},
      {{"trace", "file", "--json", "a", "--json", "b"}, "--json is given twice"},
      {{"run", "-n", "2", "--ranks", "2", "--", "true"}, "--ranks is given twice"},
      {{"run", "-n", "2", "--grace", "2", "--grace", "3", "--", "true"}, "--grace is given twice"}};
  for (const auto& [arguments, message] : cases) {
    const CommandResult result = run_epistle(arguments);
    EXPECT_EQ(result.exit_code, 2) << message;
    EXPECT_TRUE(is_error_line(result.err, message)) << message << result.err;
  }
}

TEST(Usage, PageOfTheCommandIsUpToDate) {
  if (!has_python()) GTEST_SKIP() << "python3 is not installed";
  const CommandResult result =
      run_command({EPISTLE_SOURCE_DIR "/scripts/make-docs", "--check", "--epistle", kEpistle, "command"});
  EXPECT_EQ(result.exit_code, 0) << result.describe();
}

}  // namespace
}  // namespace epistle::test
