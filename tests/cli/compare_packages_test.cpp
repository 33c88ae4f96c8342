// epistle compare with packages of others, which fakes stand for.
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "cli/epistle_command.hpp"
#include "cli/fake_packages.hpp"
#include "support/python.hpp"

namespace epistle::test {
namespace {

using Document = nlohmann::ordered_json;

CommandResult compare_packages(std::vector<std::string> options, const FakeSettings& settings = {}) {
  std::vector<std::string> arguments = {"compare", "--hidden", "64", "--experts", "12", "--top-k",  "3",  "--iters",
                                        "8",       "--warmup", "1",  "--chain",   "2",  "--tokens", "20", "--quiet"};
  arguments.insert(arguments.end(), options.begin(), options.end());
  return run_with_fakes(arguments, {"deep_ep", "nccl"}, settings);
}

Document document_of(const CommandResult& result) {
  EXPECT_EQ(result.exit_code, 0) << result.describe();
  return Document::parse(result.out, nullptr, false);
}

Document entry_named(const Document& document, const std::string& name) {
  for (const Document& entry : document.at("dispatchers")) {
    if (entry.at("dispatcher") == name) return entry;
  }
  ADD_FAILURE() << "no entry " << name << " in " << document.at("dispatchers");
  return {};
}

class ComparePackages : public testing::Test {
 protected:
  void SetUp() override {
    if (!has_python()) GTEST_SKIP() << "python3 is not installed";
  }
};

TEST_F(ComparePackages, StandBesideOursByTheSameRouting) {
  const Document document =
      document_of(compare_packages({"--dispatchers", "direct,deepep,ncclep", "--python", "python3", "--json", "-"}));
  ASSERT_TRUE(document.is_object());
  for (const char* const name : {"deepep", "ncclep"}) {
    const Document entry = entry_named(document, name);
    ASSERT_EQ(entry.at("status"), "measured") << entry;
    EXPECT_EQ(entry.at("period_us").at("samples").size(), 8U);
    EXPECT_LE(entry.at("period_us").at("p50"), entry.at("period_us").at("p99"));
    EXPECT_EQ(entry.at("package").at("routing_hash"), document.at("routing_hash"));
    EXPECT_EQ(entry.at("package").at("blocks"), 2);
    EXPECT_EQ(entry.at("package").at("stack").at("torch"), "2.11.0");
  }
  EXPECT_EQ(entry_named(document, "deepep").at("package").at("version"), "1.2.1");
  ASSERT_EQ(document.at("comparisons").size(), 2U);
  for (const Document& comparison : document.at("comparisons")) {
    EXPECT_EQ(comparison.at("against"), "direct");
    EXPECT_EQ(comparison.at("paired"), false);
    EXPECT_EQ(comparison.at("verdict"), "slower");
  }
}

TEST_F(ComparePackages, RanksThatAreProcessesLeaveTheirDocument) {
  const Document document =
      document_of(compare_packages({"--group", "processes", "--dispatcher", "direct,deepep", "--python", "python3",
                                    "--baseline", "deepep", "--json", "-"}));
  ASSERT_TRUE(document.is_object());
  EXPECT_EQ(document.at("stack").at("shape").at("group"), "processes");
  EXPECT_EQ(entry_named(document, "deepep").at("status"), "measured");
  ASSERT_EQ(document.at("comparisons").size(), 1U);
  EXPECT_EQ(document.at("comparisons").at(0).at("against"), "deepep");
}

TEST_F(ComparePackages, WhatCannotRunHasItsReasonAndNoTime) {
  const TempDir dir;
  const std::string page = dir.file("page.html");
  const CommandResult result =
      compare_packages({"--dispatcher", "direct,deepep,hybridep", "--python", "python3"}, {.outcome = "wrong-sums"});
  EXPECT_EQ(result.exit_code, 0) << result.describe();
  EXPECT_NE(result.out.find("unavailable: no steady iterations: its outputs are wrong: combine gave rank"),
            std::string::npos)
      << result.out;
  EXPECT_NE(result.out.find("unavailable: not imported: ImportError"), std::string::npos) << result.out;
  EXPECT_NE(compare_packages({"--dispatcher", "direct,deepep"}).out.find("unavailable: no --python"),
            std::string::npos);
  EXPECT_NE(compare_packages({"--dispatcher", "direct,deepep", "--dtype", "fp32", "--python", "python3"})
                .out.find("unavailable: packages are measured with rows of bf16"),
            std::string::npos);
}

TEST_F(ComparePackages, RecordsOfOtherVersionsOfAPackageAreOtherStacks) {
  const TempDir dir;
  const std::string first = dir.file("a.json");
  const CommandResult run = compare_packages({"--dispatcher", "direct,deepep", "--python", "python3", "--json", first});
  ASSERT_EQ(run.exit_code, 0) << run.describe();
  EXPECT_NE(run.out.find("Packages of others ran in two blocks"), std::string::npos) << run.out;
  Document record = Document::parse(read_file(first));
  const std::string same = dir.write("b.json", record.dump());
  EXPECT_EQ(run_epistle({"compare", first, same}).exit_code, 0);
  record.at("dispatchers").at(1).at("package").at("version") = "9";
  const std::string other = dir.write("c.json", record.dump());
  const CommandResult refused = run_epistle({"compare", first, other});
  EXPECT_EQ(refused.exit_code, 2) << refused.describe();
  EXPECT_NE(refused.err.find("packages.deepep.version is 1.2.1"), std::string::npos) << refused.err;
}

TEST_F(ComparePackages, WrongUse) {
  const CommandResult twice = compare_packages({"--dispatcher", "direct,deepep,deepep", "--python", "python3"});
  EXPECT_EQ(twice.exit_code, 2) << twice.describe();
  const CommandResult without = compare_packages({"--dispatcher", "direct", "--python", "python3"});
  EXPECT_EQ(without.exit_code, 2) << without.describe();
  EXPECT_TRUE(is_error_line(without.err, "--python is for packages of others")) << without.err;
}

}  // namespace
}  // namespace epistle::test
