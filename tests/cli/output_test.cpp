// What happens to results that cannot be written: never exit code 0, and files are whole or as they were.
#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include <sys/stat.h>
#include <unistd.h>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "cli/epistle_command.hpp"

namespace epistle::test {
namespace {

/// `epistle ARGUMENTS REDIRECTIONS` in a shell.
CommandResult run_in_shell(const std::string& before, const std::string& arguments, const std::string& redirections) {
  return run_command({"sh", "-c", before + " '" + kEpistle + "' " + arguments + " " + redirections},
                     without_settings());
}

const std::vector<std::string>& commands_that_print() {
  static const TempDir dir;
  static const std::string trace =
      dir.write("t.jsonl", R"({"layer":3,"num_experts":2,"top_k":1,"num_tokens":1,"expert_ids":[[0]]})");
  static const std::string small_bench = "bench --hidden 64 --tokens 4 --iters 1 --warmup 0";
  static const std::vector<std::string> commands = {"--help",
                                                    "--version",
                                                    "bench --help",
                                                    "run --help",
                                                    "bench --list",
                                                    "models",
                                                    "models qwen3-30b-a3b",
                                                    "models --json -",
                                                    "models --json /dev/stdout",
                                                    "settings",
                                                    "settings --json",
                                                    "trace " + trace,
                                                    "trace " + trace + " --layer 3",
                                                    "trace " + trace + " --json -",
                                                    small_bench,
                                                    small_bench + " --json -",
                                                    small_bench + " --group processes",
                                                    small_bench + " --group processes --json -"};
  return commands;
}

TEST(LostOutput, IsAnError) {
  for (const std::string& command : commands_that_print()) {
    for (const std::string redirection : {">/dev/full", ">&-", "</dev/null >&-", "<&- >&-"}) {
      SCOPED_TRACE(command + " " + redirection);
      const CommandResult result = run_in_shell("", command, redirection);
      EXPECT_EQ(result.exit_code, 5) << result.describe();
      EXPECT_NE(result.err.find("epistle: error: system error: cannot write to "), std::string::npos)
          << result.describe();
    }
    // Nobody can be told, but the code remains.
    EXPECT_EQ(run_in_shell("", command, ">&- 2>&-").exit_code, 5) << command;
    EXPECT_EQ(run_in_shell("", command, ">/dev/full 2>/dev/full").exit_code, 5) << command;
  }
}

TEST(LostOutput, PipesThatWereClosedAreAnError) {
  // The reader is gone before the first byte: a FIFO's writer keeps what a dead reader left.
  for (const std::string& command : commands_that_print()) {
    const TempDir dir;
    const CommandResult result =
        run_command({"sh", "-c",
                     "mkfifo '" + dir.file("p") + "'; exec 3<>'" + dir.file("p") + "' 4>'" + dir.file("p") +
                         "'; exec 3<&-; trap '' PIPE; '" + kEpistle + "' " + command + " >&4"},
                    without_settings());
    EXPECT_EQ(result.exit_code, 5) << command << result.describe();
    EXPECT_NE(result.err.find("Broken pipe"), std::string::npos) << command << result.describe();
  }
}

TEST(LostOutput, ErrorsThatNobodyTakesKeepTheirCode) {
  for (const std::string redirection : {"2>/dev/full", "2>&-", "<&- >&- 2>&-"}) {
    EXPECT_EQ(run_in_shell("", "frobnicate", redirection).exit_code, 2) << redirection;
    EXPECT_EQ(run_in_shell("", "trace /no/such/file", redirection).exit_code, 3) << redirection;
  }
}

TEST(LostOutput, ClosedStreamsHarmNoRun) {
  for (const std::string group : {"threads", "processes"}) {
    const TempDir dir;
    const std::string bench =
        "bench --hidden 64 --tokens 4 --iters 1 --ranks 3 --json '" + dir.file("x.json") + "' --group " + group;
    EXPECT_EQ(run_in_shell("", bench, "<&- 2>&-").exit_code, 0) << group;
    EXPECT_EQ(nlohmann::json::parse(read_file(dir.file("x.json"))).at("verified"), true);
  }
}

// ---- Files ----------------------------------------------------------------------------------------------------------

std::vector<std::string> names_in(const TempDir& dir) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(dir.path())) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

CommandResult write_models(const std::string& target, const std::string& before = "") {
  return run_in_shell(before, "models --json '" + target + "'", ">/dev/null");
}

TEST(OutputFiles, StayAsTheyWereWhereTheNewOneDoesNotFit) {
  const TempDir dir;
  const std::string old = dir.write("old.json", "old\n");
  const std::string link = dir.file("link");
  std::filesystem::create_symlink("old.json", link);
  for (const std::string& target : {old, link, dir.file("new.json")}) {
    const CommandResult result = write_models(target, "ulimit -f 4;");  // 2 KiB, and the list has more
    EXPECT_EQ(result.exit_code, 5) << result.describe();
    EXPECT_TRUE(is_error_line(result.err, "File too large")) << result.describe();
  }
  EXPECT_EQ(read_file(old), "old\n");
  EXPECT_EQ(names_in(dir), (std::vector<std::string>{"link", "old.json"}));
}

TEST(OutputFiles, AreReplacedWithWhatTheyAre) {
  const TempDir dir;
  const std::string old = dir.write("old.json", std::string(1 << 20, 'x'));
  ASSERT_EQ(::chmod(old.c_str(), 0640), 0);
  std::filesystem::create_symlink("old.json", dir.file("link"));
  std::filesystem::create_symlink("link", dir.file("link2"));
  std::filesystem::create_symlink("fresh.json", dir.file("dangling"));
  EXPECT_EQ(write_models(dir.file("link2")).exit_code, 0);
  EXPECT_EQ(write_models(dir.file("dangling"), "umask 027;").exit_code, 0);
  for (const char* const name : {"old.json", "fresh.json"}) {
    EXPECT_FALSE(nlohmann::json::parse(read_file(dir.file(name))).at("models").empty()) << name;
    struct stat status {};
    ASSERT_EQ(::stat(dir.file(name).c_str(), &status), 0);
    EXPECT_EQ(status.st_mode & 07777U, 0640U) << name;
  }
  EXPECT_TRUE(std::filesystem::is_symlink(dir.file("link")));
  EXPECT_TRUE(std::filesystem::is_symlink(dir.file("link2")));
  EXPECT_TRUE(std::filesystem::is_symlink(dir.file("dangling")));
  EXPECT_EQ(names_in(dir), (std::vector<std::string>{"dangling", "fresh.json", "link", "link2", "old.json"}));
}

TEST(OutputFiles, OtherKindsAreWrittenInPlace) {
  const TempDir dir;
  const CommandResult full = write_models("/dev/full");
  EXPECT_EQ(full.exit_code, 5);
  EXPECT_TRUE(is_error_line(full.err, "cannot write to /dev/full: No space left")) << full.err;
  const std::string pipe = dir.file("pipe");
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  const CommandResult piped =
      run_command({"sh", "-c", "cat '" + pipe + "' & '" + kEpistle + "' models --json '" + pipe + "' >/dev/null; wait"},
                  without_settings());
  EXPECT_EQ(nlohmann::json::parse(piped.out).at("models").empty(), false);
  // Standard output is a file here: what it holds stays, and the table follows.
  for (const char* const target : {"/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"}) {
    const CommandResult result = run_in_shell("echo before;", std::string("models qwen3-30b-a3b --json ") + target, "");
    EXPECT_EQ(result.exit_code, 0) << result.describe();
    EXPECT_TRUE(result.out.starts_with("before\n{\n")) << result.out;
    EXPECT_NE(result.out.find("}\nmodel "), std::string::npos) << result.out;
  }
}

TEST(OutputFiles, TargetsThatCannotBeAreAnError) {
  const TempDir dir;
  std::filesystem::create_symlink("circle", dir.file("circle"));
  for (const std::string& target : {dir.file("circle"), dir.file("no/such"), dir.path().string(),
                                    std::string("/proc/x.json"), std::string("/dev/fd/77")}) {
    const CommandResult result = write_models(target);
    EXPECT_EQ(result.exit_code, 5) << target << result.describe();
    EXPECT_TRUE(is_error_line(result.err, "cannot write to ")) << result.describe();
  }
}

TEST(OutputFiles, FoldersThatMayNotChangeKeepTheirFiles) {
  if (::geteuid() == 0) GTEST_SKIP() << "permissions of folders do not bind root";
  const TempDir dir;
  const std::string old = dir.write("old.json", "old\n");
  ASSERT_EQ(::chmod(dir.path().c_str(), 0500), 0);
  EXPECT_EQ(write_models(old).exit_code, 5);
  ASSERT_EQ(::chmod(dir.path().c_str(), 0700), 0);
  EXPECT_EQ(read_file(old), "old\n");
}

TEST(OutputFiles, NamesAreAnyBytes) {
  const TempDir dir;
  const std::string trace =
      dir.write("t\xff\n.jsonl", R"({"layer":3,"num_experts":2,"top_k":1,"num_tokens":1,"expert_ids":[[0]]})");
  const CommandResult result = run_epistle({"trace", trace, "--json", "-"});
  EXPECT_EQ(result.exit_code, 0) << result.describe();
  EXPECT_EQ(nlohmann::json::parse(result.out).at("layers").size(), 1U);
}

}  // namespace
}  // namespace epistle::test
