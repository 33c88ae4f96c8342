// The documents: what scripts/make-docs writes into them is up to date, links lead to files, the README is short. And
// scripts/make-docs itself, over records of its own.
#include <filesystem>
#include <regex>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "repo/source_tree.hpp"
#include "support/python.hpp"
#include "support/subprocess.hpp"

namespace repo_test {
namespace {

namespace fs = std::filesystem;
using epistle::test::CommandResult;
using epistle::test::read_file;
using epistle::test::TempDir;
using Json = nlohmann::json;
using std::string_literals::operator""s;

constexpr std::size_t kMaxReadmeLines = 199;

CommandResult make_docs(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), EPISTLE_SOURCE_DIR "/scripts/make-docs");
  return epistle::test::run_command(arguments);
}

TEST(Documents, AreWhatTheRecordsGive) {
  if (!epistle::test::has_python()) GTEST_SKIP() << "python3 is not installed";
  const CommandResult result = make_docs({"--check", "readme", "performance"});
  EXPECT_EQ(result.exit_code, 0) << result.describe();
}

TEST(Documents, ReadmeIsShort) {
  const SourceFile readme{.path = "README.md", .text = read_source("README.md")};
  EXPECT_LE(readme.lines().size(), kMaxReadmeLines);
}

TEST(Documents, LinksLeadToFiles) {
  static const std::regex link(R"(\]\(([^)\s]+)\))");
  for (const SourceFile& file : source_tree()) {
    if (!file.has_extension({".md"})) continue;
    const fs::path folder = fs::path(EPISTLE_SOURCE_DIR) / fs::path(file.path).parent_path();
    for (std::sregex_iterator match(file.text.begin(), file.text.end(), link), end; match != end; ++match) {
      const std::string target = (*match)[1].str();
      const std::string path = target.substr(0, target.find('#'));
      if (path.empty() || path.find("://") != std::string::npos) continue;
      EXPECT_TRUE(fs::exists(folder / path)) << file.path << " links to " << target;
    }
  }
}

// ---- scripts/make-docs ----------------------------------------------------------------------------------------------

Json phase_json(const std::string& phase, double median_us, double wire_bytes) {
  return {{"dispatcher", "direct"},  {"phase", phase},           {"median_us", median_us},
          {"p99_us", median_us + 9}, {"wire_bytes", wire_bytes}, {"link_fraction", 0.5}};
}

Json make_record(bool verified) {
  return {
      {"verified", verified},
      {"commit", "abc"},
      {"date", "2026-01-02T03:04:05Z"},
      {"limit_bytes_per_s", 350e9},
      {"limit", {{"kind", "peer stores"}}},
      {"gpu", {{"used_gpus", 2}, {"name", "Test GPU"}, {"driver", "1.2.3"}, {"runtime_cuda", "13.0"}, {"sms", 132}}},
      {"versions", {{"epistle", "1.2.3"}}},
      {"config", {{"tokens", 4096}, {"ranks", 2}, {"group", "processes"}, {"sms", 16}, {"sizing", "exact"}}},
      {"results",
       {phase_json("dispatch", 150, 7e6), phase_json("combine", 210, 14e6), phase_json("dispatch+layout", 185, 7e6),
        phase_json("round_trip", 400, 14e6)}}};
}

constexpr const char* kReadme =
    "# A\n\n<!-- ratios:begin -->\n<!-- ratios:end -->\n\n<!-- results:begin -->\nold\n<!-- results:end -->\nafter\n";

/// A folder with a README and records to make documents from.
class MakeDocs : public testing::Test {
 protected:
  void SetUp() override {
    if (!epistle::test::has_python()) GTEST_SKIP() << "python3 is not installed";
    fs::create_directories(dir_.file("docs/results"));
    dir_.write("README.md", kReadme);
  }

  void write_record(const std::string& name, const Json& record) const {
    dir_.write("docs/results/" + name + ".json", record.dump());
  }

  [[nodiscard]] CommandResult run(std::vector<std::string> arguments) const {
    arguments.insert(arguments.end(), {"--root", dir_.path().string()});
    return make_docs(arguments);
  }

  [[nodiscard]] std::string read(const std::string& name) const { return read_file(dir_.file(name)); }

  void expect_parts(const std::string& name, const std::vector<std::string>& parts) const {
    const std::string text = read(name);
    for (const std::string& part : parts) EXPECT_NE(text.find(part), std::string::npos) << part << "\n" << text;
  }

  TempDir dir_;
};

TEST_F(MakeDocs, TakesPagesFromTheRecords) {
  write_record("token-major-bf16-16sms", make_record(true));
  write_record("ep4-token-major-bf16-16sms", make_record(true));
  write_record("token-major-bf16", make_record(true));
  write_record("expert-major-bf16", make_record(false));
  write_record("two-builds", {{"samples", Json::object()}});
  Json qwen = make_record(true);
  qwen["results"] = {phase_json("dispatch", 30, 7e6), phase_json("combine", 50, 14e6)};
  write_record("qwen3-30b-fp8-32sms", qwen);
  Json single = qwen;
  single["results"] = {phase_json("dispatch", 40, 7e6), phase_json("combine", 60, 14e6)};
  write_record("qwen3-30b-fp8-32sms-single", single);
  write_record("summary", {{"date", "2026-01-02T03:04:05Z"},
                           {"device", "Test GPU"},
                           {"num_devices", 2},
                           {"commit", "abc"},
                           {"steps", {{{"name", "build"}, {"status", "skipped"}, {"reason", "carried"}}}}});

  EXPECT_EQ(run({"--check", "readme", "performance"}).exit_code, 1);
  EXPECT_EQ(read("README.md"), kReadme);
  EXPECT_FALSE(fs::exists(dir_.file("docs/performance.md")));
  const CommandResult result = run({"readme", "performance"});
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  EXPECT_EQ(run({"--check", "readme", "performance"}).exit_code, 0);

  const std::string readme = read("README.md");
  EXPECT_TRUE(readme.starts_with("# A\n\n<!-- ratios:begin -->\n\n- ")) << readme;
  EXPECT_TRUE(readme.ends_with("<!-- results:end -->\nafter\n")) << readme;
  EXPECT_EQ(readme.find("old"), std::string::npos) << readme;
  // 21 MB in 80 us are 262.5 GB/s
  expect_parts("README.md", {"of the speed of plain stores to the peer, a combine at **0.50** "
                             "([record](docs/results/token-major-bf16.json))"s,
                             "at **0.75** ([record](docs/results/qwen3-30b-fp8-32sms.json))"s,
                             "- not measured: token-major-fp8-16sms\n"s,
                             "| dispatch bf16 token-major, 16 SMs | 185 us, 50% | 185 us, 50% | – |"s,
                             "| dispatch bf16 token-major, 8 SMs | – | – | – |"s, "| 80.0 us, 75% | – | – |"s});
  expect_parts(
      "docs/performance.md",
      {"\nGenerated by scripts/make-docs; do not edit.\n"s,
       "2 x Test GPU, driver 1.2.3, CUDA 13.0; 4096 tokens per rank; link limit 350 GB/s"s,
       "| dispatch bf16 token-major, 16 SMs | ≤ 180 us | ≤ 195 us | 185 us | 194 us | 150 us | 50% | at least | - | "
       "[token-major-bf16-16sms](results/token-major-bf16-16sms.json)"s,
       "| combine bf16 from token-major rows, 16 SMs | ≤ 200 us | ≤ 225 us | 210 us | 219 us | - | 50% | at least | - | "s,
       "| dispatch bf16 token-major, 8 SMs | ≤ 290 us | ≤ 320 us | not measured |"s,
       "| not verified | - | [expert-major-bf16]"s,
       "| ≥ 85% of the link | ≥ 75% | 80.0 us | 39.0 us + 59.0 us | 80.0 us | 75% | at least | 100 us, 60% | [qwen3"s,
       "| 2 x Test GPU | 2 processes | 16 | exact | direct | - | 150 us | 185 us | 210 us | 400 us | - | 50% |"s,
       "0 passed, 0 failed, 1 skipped. build skipped (carried).\n"s});
}

TEST_F(MakeDocs, TakesThePageOfTheCommandFromWhatItPrints) {
  const std::string program = dir_.write(
      "epistle",
      "#!/bin/sh\n"
      "case \"$*\" in\n"
      "--help) printf 'Does it.\\n\\nSubcommands:\\n  go    Goes\\n  settings    Lists\\n\\nExamples:\\n  epistle "
      "go\\n' ;;\n"
      "'settings --json') echo '{\"settings\": [{\"name\": \"A\", \"default\": \"1\", \"summary\": \"an a\"}]}' ;;\n"
      "*) printf 'Help of %s\\n\\nExamples:\\n  epistle go\\n' \"$1\" ;;\n"
      "esac\n");
  fs::permissions(program, fs::perms::owner_all);
  const CommandResult result = run({"--epistle", program, "command"});
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  EXPECT_EQ(run({"--check", "--epistle", program, "command"}).exit_code, 0);
  // The examples of the command as a whole are not repeated.
  expect_parts("docs/command.md", {"## epistle go\n\n```text\nHelp of go\n```\n"s, "| `A` | 1 | an a |"s});
}

TEST_F(MakeDocs, ShowsPairsInARowWhereThereAreSome) {
  write_record("decode", Json::array());  // a table among the records
  Json record = make_record(true);
  record["config"]["layout"] = "token_major";
  write_record("token-major-bf16", record);
  ASSERT_EQ(run({"performance"}).exit_code, 0);
  EXPECT_EQ(read("docs/performance.md").find("## Pairs in a row"), std::string::npos);
  Json times = {{"dispatcher", "direct"}, {"in_graph", true}, {"samples", 30},
                {"median_us", 20},        {"p90_us", 21},     {"p99_us", 22}};
  times["pairs"] = 20;
  record["chain"] = Json::array({times});
  record["replays"] = Json::array({times});
  write_record("token-major-bf16", record);
  const CommandResult result = run({"performance"});
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  const std::string setting =
      "| [token-major-bf16](results/token-major-bf16.json) | 2 x Test GPU | 4096 | token_major | 16 "
      "| direct | ";
  expect_parts("docs/performance.md",
               {"\n## Pairs in a row\n"s, setting + "chain of 20, one graph | 20.0 us | 21.0 us | 22.0 us | 30 |"s,
                setting + "replays of a graph of one pair | 20.0 us | 21.0 us | 22.0 us | 30 |"s});
}

TEST_F(MakeDocs, WithoutRecordsItSaysSo) {
  ASSERT_EQ(run({"readme", "performance"}).exit_code, 0);
  expect_parts("README.md", {"There are no records in `docs/results` yet"});
  expect_parts("docs/performance.md", {"There are no records in `results` yet"});
}

TEST_F(MakeDocs, WrongInputIsAnError) {
  EXPECT_NE(run({"--frobnicate"}).err.find("unknown argument"), std::string::npos);
  EXPECT_TRUE(run({"--epistle", "no/such/program", "command"}).err.starts_with("error: cannot run "));
  dir_.write("README.md", "no markers\n");
  EXPECT_TRUE(run({"readme"}).err.starts_with("error: the file has no lines "));
  fs::remove(dir_.file("README.md"));
  EXPECT_TRUE(run({"readme"}).err.starts_with("error: cannot read "));
  dir_.write("docs/results/token-major-bf16.json", "{");
  EXPECT_NE(run({"performance"}).err.find("is not a benchmark record"), std::string::npos);
}

}  // namespace
}  // namespace repo_test
