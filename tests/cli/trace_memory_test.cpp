// Hostile traces under a small address space: whatever the bytes, `epistle trace` and the reader of `epistle bench` end
// with an error about the trace, and not for want of memory.
#include <fstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "cli/epistle_command.hpp"
#include "support/sanitizers.hpp"
#include "support/trace_files.hpp"

namespace epistle::test {
namespace {

constexpr std::size_t kChunkBytes = std::size_t{1} << 20;

/// A file of `head`, `num_chunks` MiB of `filler`, and `tail`.
struct Bomb {
  std::string name;
  std::string head;
  std::string filler;
  std::string tail;
  std::string part;  ///< of the error line
};

/// Packed: each piece a gzip member, some KB for a chunk. The test holds no more than a chunk.
std::string write_bomb(const TempDir& dir, const Bomb& bomb, int num_chunks, bool packed) {
  std::string chunk;
  while (chunk.size() + bomb.filler.size() <= kChunkBytes) chunk += bomb.filler;
  const auto piece = [&](const std::string& text) { return packed ? gzip(text) : text; };
  const std::string middle = piece(chunk);
  std::string path = dir.file(packed ? "bomb.gz" : "bomb.jsonl");
  std::ofstream file(path, std::ios::binary);
  file << piece(bomb.head);
  for (int idx = 0; idx < num_chunks; ++idx) file << middle;
  file << piece(bomb.tail);
  return path;
}

CommandResult run_limited(const std::string& arguments, int limit_mib) {
  return run_command(
      {"sh", "-c", "ulimit -v " + std::to_string(limit_mib * 1024) + " && exec '" + kEpistle + "' " + arguments},
      without_settings());
}

/// The reader itself stays below 50 MB; the rest is the program and its libraries.
constexpr int kReaderLimitMib = 100;

void expect_refused(const TempDir& dir, const std::string& path, const std::string& part) {
  for (const std::string& arguments :
       {"trace '" + path + "'", "trace '" + path + "' --layer 1", "trace '" + path + "' --json -"}) {
    const CommandResult result = run_limited(arguments, kReaderLimitMib);
    EXPECT_EQ(result.exit_code, 3) << arguments << result.describe();
    EXPECT_TRUE(is_error_line(result.err, part)) << result.describe();
    EXPECT_LT(result.err.size(), 500 + dir.path().string().size());
    EXPECT_EQ(result.err.find("smaller problem"), std::string::npos) << result.err;
    EXPECT_EQ(result.out, "");
  }
}

const std::vector<Bomb>& bombs() {
  const std::string head = R"({"layer":1,"num_experts":8,"top_k":1,"num_tokens":0,"expert_ids":[],)";
  const std::string long_token = "line 1: a string, a key, a number or the space around it is longer than 65536 bytes";
  static const std::vector<Bomb> all = {
      {"string", head + R"("note":")", "x", "\"}\n", long_token},
      {"escapes", head + R"("note":")", "\\\"", "\"}\n", long_token},
      {"key", head + "\"", "x", "\":1}\n", long_token},
      {"number", head + R"("note":1)", "0", "}\n", long_token},
      {"literal", head + R"("note":)", "t", "}\n", "line 1: not one whole JSON object"},
      {"space in an object", head, " ", "\"note\":1}\n", long_token},
      {"arrays", head + R"("note":)", "[", "}\n", "line 1: brackets nest deeper than 256"},
      {"objects", head + R"("note":)", R"({"a":)", "}\n", "line 1: brackets nest deeper than 256"},
      {"no line end", "", "x", "", "line 1: not one whole JSON object"},
      {"zeros", "", std::string(1, '\0'), "", "line 1: not one whole JSON object"}};
  return all;
}

class TraceMemory : public ::testing::Test {
 protected:
  void SetUp() override {
    if (testing::kAddressSanitizer || testing::kThreadSanitizer)
      GTEST_SKIP() << "sanitizers reserve more address space than the limit";
  }
  TempDir dir_;
};

TEST_F(TraceMemory, LongTokensOfAPlainFile) {
  for (const Bomb& bomb : bombs()) {
    SCOPED_TRACE(bomb.name);
    expect_refused(dir_, write_bomb(dir_, bomb, 64, false), bomb.part);
  }
}

TEST_F(TraceMemory, GzipBombs) {
  for (const Bomb& bomb : bombs()) {
    SCOPED_TRACE(bomb.name);
    expect_refused(dir_, write_bomb(dir_, bomb, 1024, true), bomb.part);
  }
}

TEST_F(TraceMemory, GzipBombsOfNothing) {
  for (const char* const filler : {" ", "\n"}) {
    const std::string path =
        write_bomb(dir_, {.name = {}, .head = {}, .filler = filler, .tail = {}, .part = {}}, 64, true);
    const CommandResult result = run_limited("trace '" + path + "'", kReaderLimitMib);
    EXPECT_EQ(result.exit_code, 3) << result.describe();
    EXPECT_TRUE(is_error_line(result.err, "the file holds no layers")) << result.describe();
  }
}

TEST_F(TraceMemory, BenchReadsTheSameWay) {
  const Bomb& bomb = bombs().front();
  const std::string path = write_bomb(dir_, bomb, 1024, true);
  const CommandResult result = run_epistle({"bench", "--routing", "trace:" + path, "--hidden", "64", "--tokens", "4"});
  EXPECT_EQ(result.exit_code, 3) << result.describe();
  EXPECT_TRUE(is_error_line(result.err, bomb.part)) << result.describe();
}

TEST_F(TraceMemory, MoreExpertsThanATableHolds) {
  const auto layers = [&](int num_layers, int num_experts) {
    std::string text;
    for (int layer = 0; layer < num_layers; ++layer) {
      text += R"({"layer":)" + std::to_string(layer) + R"(,"num_experts":)" + std::to_string(num_experts) +
              R"(,"top_k":1,"num_tokens":0,"expert_ids":[]})" + "\n";
    }
    return dir_.write("wide.jsonl.gz", gzip(text));
  };
  constexpr int kTableLimitMib = 450;  // the counts, and the table or JSON made from them
  const std::string path = layers(200, 1 << 20);
  for (const std::string options : {"", " --json -", " --top 2147483647"}) {
    const CommandResult result = run_limited("trace '" + path + "'" + options, kTableLimitMib);
    EXPECT_EQ(result.exit_code, 5) << result.describe();
    EXPECT_TRUE(is_error_line(result.err,
                              "2097152 experts together, and a table holds 1048576; show one layer with "
                              "--layer"))
        << result.describe();
  }
  // What the table takes fits, too.
  for (const std::string options : {"", " --json -"}) {
    EXPECT_EQ(run_limited("trace '" + layers(1, 1 << 20) + "'" + options, kTableLimitMib).exit_code, 0) << options;
    EXPECT_EQ(run_limited("trace '" + layers(30000, 34) + "'" + options, kTableLimitMib).exit_code, 0) << options;
  }
  const CommandResult absent = run_limited("trace '" + layers(30000, 34) + "' --layer 70000", kTableLimitMib);
  EXPECT_EQ(absent.exit_code, 3);
  EXPECT_TRUE(is_error_line(absent.err, "it holds these layers: 0-29999")) << absent.err;
}

}  // namespace
}  // namespace epistle::test
