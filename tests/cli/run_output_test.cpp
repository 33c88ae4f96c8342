// Output of ranks that cannot be written, and readers that have left or do not read.
#include <chrono>
#include <csignal>
#include <string>
#include <thread>

#include <gtest/gtest.h>

#include "cli/epistle_command.hpp"

namespace epistle::test {
namespace {

/// Runs "epistle run OPTIONS -- sh -c 'PROGRAM'" with a shell's redirections.
CommandResult run_redirected(const std::string& options, const std::string& program, const std::string& redirection) {
  return run_command({"sh", "-c", kEpistle + " run " + options + " -- sh -c '" + program + "' " + redirection},
                     without_settings());
}

TEST(RunOutput, LostLabelledOutputIsAnError) {
  for (const char* const redirection : {">/dev/full", ">&-"}) {
    const CommandResult result = run_redirected("-n 2 --label", "echo hello", redirection);
    EXPECT_EQ(result.exit_code, 5) << redirection << result.describe();
    EXPECT_TRUE(is_error_line(result.err, "output was lost: cannot write to standard output")) << result.err;
  }
}

TEST(RunOutput, LostStderrIsAnErrorToo) {
  for (const char* const redirection : {"2>/dev/full", "2>&-"}) {
    EXPECT_NE(run_redirected("-n 2 --label", "echo hello >&2", redirection).exit_code, 0) << redirection;
  }
}

TEST(RunOutput, RanksSeeThatTheirStdoutIsClosed) {
  const CommandResult result = run_redirected("-n 2", "echo hello", ">&-");
  EXPECT_NE(result.exit_code, 0) << result.describe();
  EXPECT_NE(result.err.find("I/O error"), std::string::npos) << result.err;
}

TEST(RunOutput, FailedRankCountsMoreThanLostOutput) {
  const CommandResult result = run_redirected("-n 1 --label", "echo hello; exit 7", ">/dev/full");
  EXPECT_EQ(result.exit_code, 7) << result.describe();
  EXPECT_NE(result.err.find("output was lost"), std::string::npos) << result.err;
}

TEST(RunOutput, RanksEndWhenTheReaderHasLeft) {
  // As without labels: the ranks get SIGPIPE.
  const CommandResult result = run_command(
      {"sh", "-c",
       "{ " + kEpistle + " run -n 2 --label -- sh -c 'while echo x; do :; done'; echo code $? >&2; } | head -n 1"},
      without_settings());
  EXPECT_FALSE(result.timed_out);
  EXPECT_NE(result.err.find("code " + std::to_string(128 + SIGPIPE)), std::string::npos) << result.err;
}

TEST(RunOutput, CommandEndsThoughNobodyReads) {
  // The reader neither reads nor leaves; the command is told to end, and does.
  const CommandResult result = run_command(
      {"sh", "-c",
       "{ timeout -s TERM 0.5 " + kEpistle +
           " run -n 2 --label -- sh -c 'while echo x; do :; done'; echo code $? >&2; } | { sleep 4; cat >/dev/null; }"},
      without_settings());
  EXPECT_NE(result.err.find("code 124"), std::string::npos) << result.err;  // of timeout(1), which waits for it
  EXPECT_NE(result.err.find("nobody reads it"), std::string::npos) << result.err;
}

}  // namespace
}  // namespace epistle::test
