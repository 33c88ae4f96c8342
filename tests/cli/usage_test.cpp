#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "epistle/version.hpp"

#include "cli/epistle_command.hpp"

namespace epistle::test {
namespace {

TEST(Usage, VersionIsThatOfTheLibrary) {
  const CommandResult result = run_epistle({"--version"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.out, "epistle " EPISTLE_VERSION "\n");
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

}  // namespace
}  // namespace epistle::test
