#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "cli/epistle_command.hpp"

namespace epistle::test {
namespace {

using Json = nlohmann::json;

Json find_named(const Json& list, const std::string& name) {
  for (const Json& entry : list) {
    if (entry.at("name") == name) return entry;
  }
  return {};
}

/// A program that stands in for a Python interpreter.
std::string write_program(const TempDir& dir, const std::string& body) {
  dir.write("python", "#!/bin/sh\n" + body + "\n");
  std::filesystem::permissions(dir.file("python"), std::filesystem::perms::owner_all);
  return dir.file("python");
}

Json examine(const std::vector<std::string>& arguments) {
  std::vector<std::string> all = {"doctor", "--json"};
  all.insert(all.end(), arguments.begin(), arguments.end());
  const CommandResult result = run_epistle(all);
  EXPECT_EQ(result.exit_code, 0) << result.describe();
  return result.exit_code == 0 ? Json::parse(result.out) : Json();
}

TEST(Doctor, ProvesTheHostDeviceByRunningIt) {
  const Json report = examine({});
  ASSERT_TRUE(report.is_object());
  std::size_t num_host = 0;
  for (const Json& dispatcher : report.at("dispatchers")) {
    if (dispatcher.at("device") != "host") continue;
    ++num_host;
    EXPECT_EQ(dispatcher.at("proved"), "steady") << dispatcher;
    EXPECT_EQ(dispatcher.at("available"), true) << dispatcher;
    for (const char* const level : {"selected", "imported", "initialised", "steady"})
      EXPECT_EQ(dispatcher.at("levels").at(level), true) << dispatcher;
  }
  EXPECT_GE(num_host, 3U);
  EXPECT_GT(report.at("host").at("num_cores"), 0);
  const Json& network = report.at("network");
  EXPECT_EQ(network.at("nics"), report.at("nics").size());
  EXPECT_LE(network.at("active_nics"), network.at("nics"));
  EXPECT_EQ(network.at("rails"), report.at("fabric").at("nics").size());
  EXPECT_EQ(network.at("nics_per_gpu").is_null(), report.at("gpus").empty());
  for (const char* const device : {"host", "cuda"}) {
    std::vector<std::string> names = network.at("dispatchers").at(device);
    std::sort(names.begin(), names.end());
    EXPECT_EQ(names, (std::vector<std::string>{"alltoall", "hybrid"})) << device;
  }
  for (const char* const field : {"versions", "gpus", "nvlink_domains", "nvlink_fabric", "nics", "backends", "memory"})
    EXPECT_TRUE(report.contains(field)) << field;
  if (report.at("gpus").empty()) {
    EXPECT_FALSE(report.at("no_gpu").at("reason").get<std::string>().empty());
    EXPECT_EQ(find_named(report.at("backends"), "epistle").at("available"), false);
  }
  for (const Json& need : report.at("memory").at("per_rank")) {
    EXPECT_TRUE(need.at("largest_bytes").is_null() ? !need.at("refused").get<std::string>().empty()
                                                   : need.at("largest_bytes") > 0)
        << need;
  }
}

TEST(Doctor, PackagesWithoutAnInterpreterAreNotTried) {
  const Json backend = find_named(examine({}).at("backends"), "deepep");
  EXPECT_EQ(backend.at("available"), false);
  EXPECT_TRUE(backend.at("levels").at("imported").is_null());
  EXPECT_NE(backend.at("reason").get<std::string>().find("--python"), std::string::npos);
}

TEST(Doctor, ACrashAndAHangAreFindings) {
  const TempDir dir;
  const Json crashed =
      find_named(examine({"--skip-own", "--python", write_program(dir, "kill -SEGV $$")}).at("backends"), "hybridep");
  EXPECT_EQ(crashed.at("levels").at("imported"), false);
  EXPECT_NE(crashed.at("reason").get<std::string>().find("signal 11"), std::string::npos) << crashed;
  const Json hung = find_named(
      examine({"--skip-own", "--packages", "deepep", "--time-limit", "1", "--python", write_program(dir, "sleep 60")})
          .at("backends"),
      "deepep");
  EXPECT_NE(hung.at("reason").get<std::string>().find("did not end within 1 s"), std::string::npos) << hung;
  const Json silent = find_named(
      examine({"--skip-own", "--packages", "deepep", "--python", write_program(dir, "echo noise")}).at("backends"),
      "deepep");
  EXPECT_EQ(silent.at("levels").at("imported"), false);
  EXPECT_NE(silent.at("reason").get<std::string>().find("gave no answer"), std::string::npos) << silent;
}

TEST(Doctor, AnInterpreterThatIsNotThereIsAnError) {
  const CommandResult result = run_epistle({"doctor", "--python", "/nowhere/python"});
  EXPECT_EQ(result.exit_code, 5);
  EXPECT_TRUE(is_error_line(result.err, "/nowhere/python")) << result.err;
}

}  // namespace
}  // namespace epistle::test
