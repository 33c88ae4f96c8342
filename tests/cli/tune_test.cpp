// epistle tune: a profile is found, used, and refused where it does not fit.
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "cli/epistle_command.hpp"
#include "support/browser.hpp"
#include "support/temp_dir.hpp"

namespace epistle::test {
namespace {

using Profile = nlohmann::ordered_json;

std::vector<std::string> shape(const std::string& command, const std::string& hidden = "64") {
  return {command, "--hidden", hidden, "--experts", "12", "--top-k", "3", "--tokens", "20", "--warmup", "1"};
}

CommandResult run_with(std::vector<std::string> arguments, const std::vector<std::string>& options) {
  arguments.insert(arguments.end(), options.begin(), options.end());
  return run_epistle(arguments);
}

/// One profile for all tests: what they look at does not depend on what was found.
class Tune : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    result() = run_with(shape("tune"), {"--iters", "6", "--chain", "2", "--profile", dir().file("profile.json")});
  }
  static CommandResult& result() {
    static CommandResult instance;
    return instance;
  }
  static TempDir& dir() {
    static TempDir instance;
    return instance;
  }
  static std::string path() { return dir().file("profile.json"); }
  static Profile profile() { return Profile::parse(read_file(path())); }
};

TEST_F(Tune, FindsSettingsOneKnobAtATime) {
  ASSERT_EQ(result().exit_code, 0) << result().describe();
  const Profile found = profile();
  EXPECT_EQ(found.at("validation").at("in_domain"), "passed");
  ASSERT_EQ(found.at("knobs").size(), 4U);
  for (const Profile& knob : found.at("knobs")) {
    EXPECT_FALSE(knob.at("stopped").get<std::string>().empty());
    EXPECT_GE(knob.at("values").size(), 2U) << knob.at("knob");
    bool has_chosen = false;
    for (const Profile& value : knob.at("values")) has_chosen = has_chosen || value.at("value") == knob.at("chosen");
    EXPECT_TRUE(has_chosen) << knob.dump(1);
  }
  EXPECT_NE(found.at("joint").at("verdict"), "too few rounds");
  const bool kept = found.at("joint").at("kept_defaults").get<bool>();
  EXPECT_EQ(kept, found.at("settings") == found.at("default_settings"));
  EXPECT_TRUE(kept || !found.at("joint").at("found_defaults").get<bool>());
  EXPECT_EQ(found.at("crossover").at("points").size(), 7U);
  EXPECT_GT(found.at("smallest_buffer").at("bytes"), 0);
  EXPECT_NE(result().out.find("settings: dispatcher "), std::string::npos) << result().out;
}

TEST_F(Tune, WorkBesideAndSeveralRequestsAreMeasuredAndVerified) {
  const CommandResult run = run_with(shape("tune"), {"--dispatcher", "direct", "--iters", "6", "--chain", "3", "--gemm",
                                                     "--concurrency", "2", "--policy", "balanced", "--json", "-"});
  ASSERT_EQ(run.exit_code, 0) << run.describe();
  const Profile found = Profile::parse(run.out);
  EXPECT_EQ(found.at("validation").at("in_domain"), "passed");
  EXPECT_EQ(found.at("concurrency"), 2);
  EXPECT_GT(found.at("gemm").at("units_per_pair"), 0);
  EXPECT_GT(found.at("gemm").at("alone_us_per_pair"), 0.0);
  EXPECT_GE(found.at("settings").at("num_buffers"), 2) << "each request under way has its own";
  for (const Profile& knob : found.at("knobs")) {
    if (knob.at("knob") == "num_buffers") {
      EXPECT_EQ(knob.at("values").at(0).at("value"), "2");
    }
  }
  EXPECT_TRUE(profile().at("gemm").is_null());
  EXPECT_EQ(profile().at("concurrency"), 1);
  const CommandResult refused = run_with(shape("tune"), {"--concurrency", "4", "--chain", "2"});
  EXPECT_EQ(refused.exit_code, 2);
  EXPECT_TRUE(is_error_line(refused.err, "--concurrency 4 is more than a chain has")) << refused.err;
}

TEST_F(Tune, ProfileIsUsedByBenchAndTakesPartInCompare) {
  const CommandResult bench = run_with(shape("bench"), {"--iters", "2", "--profile", path(), "--json", "-"});
  ASSERT_EQ(bench.exit_code, 0) << bench.describe();
  const Profile record = Profile::parse(bench.out);
  EXPECT_EQ(record.at("results").at(0).at("dispatcher"), profile().at("settings").at("dispatcher"));
  EXPECT_EQ(record.at("config").at("workers"), profile().at("settings").at("workers"));
  const CommandResult compare = run_with(
      shape("compare"), {"--dispatcher", "direct", "--iters", "6", "--chain", "2", "--profile", path(), "--json", "-"});
  ASSERT_EQ(compare.exit_code, 0) << compare.describe();
  const Profile both = Profile::parse(compare.out);
  ASSERT_EQ(both.at("dispatchers").size(), 2U);
  EXPECT_EQ(both.at("dispatchers").at(1).at("dispatcher"), "profile");
  EXPECT_EQ(both.at("comparisons").at(0).at("against"), "direct");
}

TEST_F(Tune, ProfileIsRefusedWhereItDoesNotFit) {
  const auto refused = [](std::vector<std::string> arguments, const std::vector<std::string>& options,
                          const std::string& part, int exit_code) {
    const CommandResult bench = run_with(std::move(arguments), options);
    EXPECT_EQ(bench.exit_code, exit_code) << bench.describe();
    EXPECT_TRUE(is_error_line(bench.err, part)) << bench.describe();
  };
  refused(shape("bench", "128"), {"--profile", path()}, "its shape.hidden is 64, and here it is 128", 2);
  refused(shape("bench"), {"--profile", path(), "--ranks", "3"}, "its ranks is 2, and here it is 3", 2);
  refused(shape("bench"), {"--profile", path(), "--group", "processes"}, "its group is ", 2);
  refused(shape("bench"), {"--profile", path(), "--workers", "1"}, "--workers is what --profile sets", 2);
  Profile other = profile();
  other["key"]["version"] = "0.0.1";
  refused(shape("bench"), {"--profile", dir().write("old.json", other.dump())}, "its version is \"0.0.1\"", 2);
  other = profile();
  other["key"]["topology"]["cpu"] = "another";
  refused(shape("bench"), {"--profile", dir().write("cpu.json", other.dump())}, "its topology.cpu is \"another\"", 2);
  other = profile();
  other["settings"]["workers"] = 0;
  refused(shape("bench"), {"--profile", dir().write("bad.json", other.dump())}, "bad.json: field settings.workers is 0",
          3);
  other["settings"]["dispatcher"] = "deepep";
  refused(shape("bench"), {"--profile", dir().write("bad.json", other.dump())}, "field settings.dispatcher names no ",
          3);
  refused(shape("bench"), {"--profile", dir().write("cut.json", "{\"tool\": \"epistle tu")}, "line 1 is not JSON", 3);
  refused(shape("bench"), {"--profile", dir().file("none.json")}, "cannot open", 3);
}

TEST_F(Tune, RefusesWhatItIsToFind) {
  for (const char* const option : {"--workers", "--sms"}) {
    const CommandResult refused = run_with(shape("tune"), {option, "1"});
    EXPECT_EQ(refused.exit_code, 2) << refused.describe();
    EXPECT_TRUE(is_error_line(refused.err, std::string(option) + " is what tune finds")) << refused.describe();
  }
  const CommandResult policy = run_with(shape("tune"), {"--policy", "cheap"});
  EXPECT_TRUE(is_error_line(policy.err, "it takes latency, throughput, balanced")) << policy.describe();
}

TEST_F(Tune, PolicyAndPageForProcesses) {
  const CommandResult tuned =
      run_with(shape("tune"), {"--iters", "6", "--chain", "1", "--group", "processes", "--policy", "balanced", "--html",
                               dir().file("page.html"), "--json", dir().file("tune.json")});
  if (const std::string lack = lack_of_pages(tuned); !lack.empty()) GTEST_SKIP() << lack;
  ASSERT_EQ(tuned.exit_code, 0) << tuned.describe();
  const Profile record = Profile::parse(read_file(dir().file("tune.json")));
  EXPECT_EQ(record.at("policy"), "balanced");
  EXPECT_EQ(record.at("key").at("group"), "processes");
  std::string reason;
  const auto found = open_page(dir().file("page.html"), reason);
  if (!found) GTEST_SKIP() << reason;
  expect_sound_page(*found, 6);
  for (const Profile& knob : record.at("knobs")) {
    for (const Profile& value : knob.at("values")) {
      EXPECT_TRUE(shows_number(*found, value.at("period_us").at("p50").get<double>())) << value.dump();
    }
  }
}

}  // namespace
}  // namespace epistle::test
