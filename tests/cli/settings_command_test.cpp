#include <string>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "cli/epistle_command.hpp"

namespace epistle::test {
namespace {

TEST(SettingsCommand, TableShowsValuesAndOrigins) {
  const CommandResult result = run_epistle({"settings"}, {.environment = {{"EPISTLE_TIMEOUT_MS", "1234"}}});
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  const auto lines = split_lines(result.out);
  ASSERT_GE(lines.size(), 7U);
  EXPECT_NE(lines[2].find("EPISTLE_TIMEOUT_MS"), std::string::npos);
  EXPECT_NE(lines[2].find("1234"), std::string::npos) << lines[2];
  EXPECT_NE(lines[2].find("environment"), std::string::npos) << lines[2];
  EXPECT_NE(lines[3].find("default"), std::string::npos) << lines[3];
  for (const std::string& line : lines) EXPECT_FALSE(line.ends_with(' ')) << line;
}

TEST(SettingsCommand, Json) {
  const CommandResult result = run_epistle({"settings", "--json"}, {.environment = {{"EPISTLE_LOG", "debug"}}});
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  const auto json = nlohmann::json::parse(result.out);
  bool found = false;
  for (const auto& setting : json.at("settings")) {
    EXPECT_FALSE(setting.at("summary").get<std::string>().empty());
    if (setting.at("name") != "EPISTLE_LOG") continue;
    found = true;
    EXPECT_EQ(setting.at("value"), "debug");
    EXPECT_EQ(setting.at("origin"), "environment");
    EXPECT_EQ(setting.at("default"), "warn");
  }
  EXPECT_TRUE(found) << result.out;
}

TEST(SettingsCommand, MalformedValueIsAnInvalidArgument) {
  const CommandResult result = run_epistle({"settings"}, {.environment = {{"EPISTLE_TIMEOUT_MS", "soon"}}});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_TRUE(is_error_line(result.err, "EPISTLE_TIMEOUT_MS is 'soon'")) << result.err;
}

}  // namespace
}  // namespace epistle::test
