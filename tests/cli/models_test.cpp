#include "epistle/models.hpp"

#include <string>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "cli/epistle_command.hpp"

namespace epistle::test {
namespace {

TEST(Models, TableHasEveryPreset) {
  const CommandResult result = run_epistle({"models"});
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  const auto lines = split_lines(result.out);
  ASSERT_EQ(lines.size(), model_presets().size() + 2);  // header and rule
  for (std::size_t i = 0; i < model_presets().size(); ++i) {
    EXPECT_TRUE(lines[i + 2].starts_with(std::string(model_presets()[i].name) + " ")) << lines[i + 2];
  }
  for (const std::string& line : lines) EXPECT_FALSE(line.ends_with(' ')) << line;
}

TEST(Models, OneModelIsFoundIgnoringCase) {
  const CommandResult result = run_epistle({"models", "QWEN3-30B-A3B"});
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  EXPECT_NE(result.out.find("Qwen3-30B-A3B"), std::string::npos) << result.out;
  EXPECT_NE(result.out.find("source"), std::string::npos) << result.out;
}

TEST(Models, JsonOnStandardOutputReplacesTheTable) {
  const CommandResult result = run_epistle({"models", "--json", "-"});
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  const auto models = nlohmann::json::parse(result.out).at("models");
  ASSERT_EQ(models.size(), model_presets().size());
  const ModelPreset& first = model_presets()[0];
  EXPECT_EQ(models[0].at("name"), first.name);
  EXPECT_EQ(models[0].at("hidden"), first.hidden);
  EXPECT_EQ(models[0].at("num_experts"), first.num_experts);
  EXPECT_EQ(models[0].at("top_k"), first.top_k);
  EXPECT_EQ(models[0].at("source"), first.source);
  EXPECT_TRUE(models[0].at("aliases").is_array());
}

TEST(Models, JsonFileComesWithTheTable) {
  const TempDir dir;
  const CommandResult result = run_epistle({"models", "qwen3-30b-a3b", "--json", dir.file("models.json")});
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  EXPECT_NE(result.out.find("qwen3-30b-a3b"), std::string::npos);
  const auto models = nlohmann::json::parse(read_file(dir.file("models.json"))).at("models");
  ASSERT_EQ(models.size(), 1U);
  EXPECT_EQ(models[0].at("name"), "qwen3-30b-a3b");
}

TEST(Models, UnknownNameIsNotFound) {
  const CommandResult result = run_epistle({"models", "qwen3-30b-a3c"});
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_TRUE(is_error_line(result.err, "qwen3-30b-a3b")) << result.err;  // the closest name
  EXPECT_EQ(result.out, "");
}

TEST(Models, UnwritableOutputIsASystemError) {
  const TempDir dir;
  const CommandResult missing = run_epistle({"models", "--json", dir.file("missing/models.json")});
  EXPECT_EQ(missing.exit_code, 5) << missing.describe();
  EXPECT_TRUE(is_error_line(missing.err, "cannot write")) << missing.err;
  const CommandResult full = run_epistle({"models", "--json", "/dev/full"});
  EXPECT_EQ(full.exit_code, 5) << full.describe();
}

}  // namespace
}  // namespace epistle::test
