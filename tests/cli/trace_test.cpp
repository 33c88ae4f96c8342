#include <cmath>
#include <string>

#include <zlib.h>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "cli/epistle_command.hpp"

namespace epistle::test {
namespace {

// Layer 1: expert 0 has 3 of 8 assignments, 1 and 2 have 2 each, 3 has 1; mean 2. Layer 5 is even, with one entry
// dropped.
constexpr const char* kLayers =
    "{\"layer\":1,\"num_experts\":4,\"top_k\":2,\"num_tokens\":4,"
    "\"expert_ids\":[[0,1],[0,2],[0,1],[2,3]],"
    "\"weights\":[[0.5,0.5],[0.5,0.5],[0.5,0.5],[0.5,0.5]]}\n"
    "{\"layer\":5,\"num_experts\":3,\"top_k\":2,\"num_tokens\":2,"
    "\"expert_ids\":[[0,1],[2,-1]],"
    "\"weights\":[[0.5,0.5],[1.0,0.0]]}\n";

std::string write_gzip(const TempDir& dir, const std::string& name, const std::string& content) {
  std::string path = dir.file(name);
  gzFile file = gzopen(path.c_str(), "wb");
  EXPECT_EQ(gzwrite(file, content.data(), static_cast<unsigned>(content.size())), static_cast<int>(content.size()));
  gzclose(file);
  return path;
}

TEST(Trace, TableHasOneRowPerLayer) {
  const TempDir dir;
  const CommandResult result =
      run_epistle({"trace", dir.write("t.jsonl", kLayers)}, {.environment = {{"LC_ALL", "C"}}});
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  const auto lines = split_lines(result.out);
  ASSERT_EQ(lines.size(), 4U) << result.out;
  // max/mean 1.5; deviations 1, 0, 0, -1: cv = sqrt(0.5) / 2
  EXPECT_EQ(lines[2],
            "    1        4      2       4        0      1.50  0.35  ############  0 (37.5%), 1 (25.0%), 2 (25.0%)");
  EXPECT_EQ(lines[3],
            "    5        3      2       2        1      1.00  0.00  ########      0 (33.3%), 1 (33.3%), 2 (33.3%)");
  EXPECT_EQ(result.err, "");  // no progress bar in a pipe
}

TEST(Trace, GzipGivesTheSame) {
  const TempDir dir;
  const CommandResult plain = run_epistle({"trace", dir.write("t.jsonl", kLayers)});
  const CommandResult packed = run_epistle({"trace", write_gzip(dir, "t.jsonl.gz", kLayers)});
  ASSERT_EQ(packed.exit_code, 0) << packed.describe();
  EXPECT_EQ(packed.out, plain.out);
}

TEST(Trace, TopLimitsTheHottestExperts) {
  const TempDir dir;
  const CommandResult result = run_epistle({"trace", dir.write("t.jsonl", kLayers), "--top", "1"});
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  EXPECT_TRUE(split_lines(result.out)[2].ends_with("  0 (37.5%)")) << result.out;
}

TEST(Trace, LayerShowsEveryExpert) {
  const TempDir dir;
  const std::string path = dir.write("t.jsonl", kLayers);
  const CommandResult result = run_epistle({"trace", path, "--layer", "1"}, {.environment = {{"LC_ALL", "C"}}});
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  const auto lines = split_lines(result.out);
  ASSERT_EQ(lines.size(), 8U) << result.out;
  EXPECT_TRUE(lines[0].starts_with("layer 1: 4 experts, top-2, 4 tokens, 0 dropped")) << lines[0];
  EXPECT_EQ(lines[4], "     0       3  37.5%     1.50  ########################################");
  EXPECT_EQ(lines[7], "     3       1  12.5%     0.50  #############");

  const CommandResult hottest = run_epistle({"trace", path, "--layer", "1", "--top", "2"});
  EXPECT_EQ(split_lines(hottest.out).size(), 6U) << hottest.out;
}

TEST(Trace, JsonHasCountsAndStatistics) {
  const TempDir dir;
  const std::string path = dir.write("t.jsonl", kLayers);
  const CommandResult result = run_epistle({"trace", path, "--json", "-"});
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  const auto json = nlohmann::json::parse(result.out);
  EXPECT_EQ(json.at("file"), path);
  ASSERT_EQ(json.at("layers").size(), 2U);
  const auto& first = json.at("layers")[0];
  EXPECT_EQ(first.at("layer"), 1);
  EXPECT_EQ(first.at("num_tokens"), 4);
  EXPECT_EQ(first.at("tokens_per_expert"), (std::vector<int>{3, 2, 2, 1}));
  EXPECT_DOUBLE_EQ(first.at("max_over_mean").get<double>(), 1.5);
  EXPECT_DOUBLE_EQ(first.at("coefficient_of_variation").get<double>(), std::sqrt(0.5) / 2.0);
  EXPECT_EQ(first.at("hottest")[0].at("expert"), 0);
  EXPECT_DOUBLE_EQ(first.at("hottest")[0].at("share").get<double>(), 0.375);
  EXPECT_EQ(json.at("layers")[1].at("num_dropped"), 1);
}

TEST(Trace, JsonFileComesWithTheTable) {
  const TempDir dir;
  const CommandResult result =
      run_epistle({"trace", dir.write("t.jsonl", kLayers), "--layer", "5", "--json", dir.file("out.json")});
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  EXPECT_TRUE(result.out.starts_with("layer 5:")) << result.out;
  const auto layers = nlohmann::json::parse(read_file(dir.file("out.json"))).at("layers");
  ASSERT_EQ(layers.size(), 1U);
  EXPECT_EQ(layers[0].at("layer"), 5);
}

TEST(Trace, MissingFileOrLayerIsNotFound) {
  const TempDir dir;
  const CommandResult no_file = run_epistle({"trace", dir.file("none.jsonl")});
  EXPECT_EQ(no_file.exit_code, 3);
  EXPECT_TRUE(is_error_line(no_file.err, "none.jsonl")) << no_file.err;
  const CommandResult no_layer = run_epistle({"trace", dir.write("t.jsonl", kLayers), "--layer", "2"});
  EXPECT_EQ(no_layer.exit_code, 3);
  EXPECT_TRUE(is_error_line(no_layer.err, "1, 5")) << no_layer.err;
}

TEST(Trace, CorruptAndTruncatedFilesAreRejected) {
  const TempDir dir;
  const std::string trace = kLayers;
  const std::string second_line_cut = trace.substr(0, trace.size() - 30);
  const std::string packed = read_file(write_gzip(dir, "whole.gz", trace));
  std::string flipped = packed;
  flipped[flipped.size() / 2] = static_cast<char>(flipped[flipped.size() / 2] ^ 0x55);
  std::string bad_id = trace;
  bad_id.replace(bad_id.find("[2,3]"), 5, "[2,9]");
  const std::vector<std::string> paths = {
      dir.write("cut.jsonl", second_line_cut), dir.write("text.jsonl", "no trace at all\n"),
      dir.write("bad_id.jsonl", bad_id), dir.write("cut.gz", packed.substr(0, packed.size() / 2)),
      dir.write("flipped.gz", flipped)};
  for (const std::string& path : paths) {
    const CommandResult result = run_epistle({"trace", path});
    EXPECT_EQ(result.exit_code, 3) << path << result.describe();
    EXPECT_TRUE(is_error_line(result.err, "corrupt input")) << path << result.describe();
    EXPECT_EQ(result.out, "") << path;
  }
  EXPECT_NE(run_epistle({"trace", paths[0]}).err.find("line 2"), std::string::npos);
}

TEST(Trace, EmptyTracesAndRepeatedLayersAreErrors) {
  const TempDir dir;
  const std::string layer = R"({"layer":1,"num_experts":4,"top_k":1,"num_tokens":1,"expert_ids":[[0]]})"
                            "\n";
  for (const std::vector<std::string>& options : {std::vector<std::string>{}, {"--layer", "0"}, {"--layer", "1"}}) {
    std::vector<std::string> arguments = {"trace", dir.write("empty.jsonl", "")};
    arguments.insert(arguments.end(), options.begin(), options.end());
    const CommandResult empty = run_epistle(arguments);
    EXPECT_EQ(empty.exit_code, 3) << empty.describe();
    EXPECT_TRUE(is_error_line(empty.err, "the file holds no layers")) << empty.err;
    arguments[1] = dir.write("twice.jsonl", layer + layer);
    const CommandResult twice = run_epistle(arguments);
    EXPECT_EQ(twice.exit_code, 3) << twice.describe();
    EXPECT_TRUE(is_error_line(twice.err, "line 2: layer 1 stands in line 1 already")) << twice.err;
  }
}

TEST(Trace, DamagedTailsAreErrors) {
  const TempDir dir;
  const std::string packed = read_file(write_gzip(dir, "whole.gz", kLayers));
  std::string damaged = packed;
  damaged[0] = 'x';
  for (const std::string& tail : {damaged, std::string("garbage"), packed.substr(0, 10), std::string(1, '\x1f')}) {
    const std::string path = dir.write("tail.gz", packed + tail);
    for (const std::vector<std::string>& arguments :
         {std::vector<std::string>{"trace", path},
          std::vector<std::string>{"bench", "--routing", "trace:" + path, "--hidden", "64", "--tokens", "1"}}) {
      const CommandResult result = run_epistle(arguments);
      EXPECT_EQ(result.exit_code, 3) << result.describe();
      EXPECT_TRUE(is_error_line(result.err, "corrupt input: trace '" + path)) << result.err;
    }
  }
}

}  // namespace
}  // namespace epistle::test
