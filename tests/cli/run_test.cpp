#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include <sys/stat.h>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "cli/epistle_command.hpp"

namespace epistle::test {
namespace {

/// Runs a shell script as every rank.
CommandResult run_ranks(std::vector<std::string> options, const std::string& script, CommandOptions command = {}) {
  options.insert(options.begin(), "run");
  for (const std::string& argument : {std::string("--"), std::string("sh"), std::string("-c"), script}) {
    options.push_back(argument);
  }
  return run_epistle(options, std::move(command));
}

std::vector<std::string> sorted_lines(const std::string& text) {
  std::vector<std::string> lines = split_lines(text);
  std::sort(lines.begin(), lines.end());
  return lines;
}

TEST(Run, RanksSeeTheirPlace) {
  const CommandResult result = run_ranks({"-n", "3"}, "echo \"$RANK $WORLD_SIZE $LOCAL_RANK $LOCAL_WORLD_SIZE\"");
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  EXPECT_EQ(sorted_lines(result.out), (std::vector<std::string>{"0 3 0 3", "1 3 1 3", "2 3 2 3"}));
  EXPECT_EQ(result.err, "");
}

TEST(Run, JobNameIsSharedAndUnique) {
  std::set<std::string> jobs;
  for (int i = 0; i < 2; ++i) {
    const CommandResult result = run_ranks({"-n", "2"}, "echo $EPISTLE_JOB");
    const auto lines = split_lines(result.out);
    ASSERT_EQ(lines.size(), 2U) << result.describe();
    EXPECT_EQ(lines[0], lines[1]);
    EXPECT_EQ(lines[0].size(), 32U);
    EXPECT_EQ(lines[0].find_first_not_of("0123456789abcdef"), std::string::npos) << lines[0];
    jobs.insert(lines[0]);
  }
  EXPECT_EQ(jobs.size(), 2U);
}

TEST(Run, OtherLaunchersVariablesAreReplacedOrRemoved) {
  const CommandOptions options = {.environment = {{"RANK", "7"},
                                                  {"EPISTLE_JOB", "outer"},
                                                  {"TORCHELASTIC_RUN_ID", "x"},
                                                  {"OMPI_COMM_WORLD_RANK", "1"},
                                                  {"PMIX_NAMESPACE", "x"},
                                                  {"PMI_RANK", "1"},
                                                  {"MPI_LOCALRANKID", "1"},
                                                  {"SLURM_PROCID", "1"},
                                                  {"SLURM_STEP_ID", "1"},
                                                  {"SLURM_JOB_ID", "5"},
                                                  {"MASTER_PORT", "29500"}}};
  const CommandResult result = run_ranks({"-n", "1"}, "env", options);
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  const auto lines = sorted_lines(result.out);
  const auto has = [&](const std::string& prefix) {
    return std::any_of(lines.begin(), lines.end(), [&](const std::string& line) { return line.starts_with(prefix); });
  };
  for (const char* const name : {"TORCHELASTIC_RUN_ID=", "OMPI_COMM_WORLD_RANK=", "PMIX_NAMESPACE=", "PMI_RANK=",
                                 "MPI_LOCALRANKID=", "SLURM_PROCID=", "SLURM_STEP_ID=", "EPISTLE_JOB=outer"}) {
    EXPECT_FALSE(has(name)) << name;
  }
  EXPECT_TRUE(has("RANK=0"));
  EXPECT_TRUE(has("SLURM_JOB_ID=5"));     // describes the allocation, not a rank
  EXPECT_TRUE(has("MASTER_PORT=29500"));  // the program's own business
}

TEST(Run, ArgumentsArriveUnchanged) {
  const std::vector<std::string> arguments = {"", "{}", "[a,b]", "a b", "--", "--help", "-n", "%%", "'\""};
  std::vector<std::string> command = {"run", "-n", "1", "--", "printf", "<%s>\\n"};
  command.insert(command.end(), arguments.begin(), arguments.end());
  const CommandResult result = run_epistle(command);
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  std::vector<std::string> expected;
  expected.reserve(arguments.size());
  for (const std::string& argument : arguments) expected.push_back("<" + argument + ">");
  EXPECT_EQ(split_lines(result.out), expected);
}

TEST(Run, ExitCodeIsThatOfTheFailingRank) {
  const CommandResult result = run_ranks({"-n", "3"}, "[ $RANK = 1 ] && exit 3; exit 0");
  EXPECT_EQ(result.exit_code, 3);
  const auto lines = split_lines(result.err);
  ASSERT_EQ(lines.size(), 1U) << result.err;
  EXPECT_TRUE(lines[0].starts_with("epistle: rank 1 (pid ")) << result.err;
  EXPECT_TRUE(lines[0].ends_with("exited with code 3")) << result.err;
}

TEST(Run, KilledRankGivesItsSignal) {
  const CommandResult result = run_ranks({"-n", "2"}, "[ $RANK = 0 ] && kill -9 $$; exit 0");
  EXPECT_EQ(result.exit_code, 137);
  EXPECT_NE(result.err.find("rank 0 (pid "), std::string::npos) << result.err;
  EXPECT_NE(result.err.find("was killed by signal 9 (Killed)"), std::string::npos) << result.err;
}

TEST(Run, SurvivorsHaveTheGracePeriodToReport) {
  const CommandResult result =
      run_ranks({"-n", "2", "--grace", "10"}, "[ $RANK = 0 ] && exit 3; sleep 0.3; echo reported; exit 5");
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_EQ(result.out, "reported\n");
}

TEST(Run, RankThatReportsAnotherIsNotBlamed) {
  // 4 is the exit code for a lost peer: rank 0 says it first, but rank 1 is at fault.
  const CommandResult result = run_ranks({"-n", "2", "--grace", "10"}, "[ $RANK = 0 ] && exit 4; sleep 0.2; exit 6");
  EXPECT_EQ(result.exit_code, 6);
  EXPECT_NE(result.err.find("rank 1 (pid "), std::string::npos) << result.err;
  EXPECT_EQ(run_ranks({"-n", "2"}, "exit 4").exit_code, 4);
}

TEST(Run, RanksThatStayAreStoppedAfterTheGracePeriod) {
  const CommandResult result = run_ranks({"-n", "3", "--grace", "0.2"}, "[ $RANK = 2 ] && exit 3; sleep 50");
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_NE(result.err.find("ranks 0, 1 still ran 200 ms after the failure"), std::string::npos) << result.err;
}

TEST(Run, RanksThatIgnoreSigtermAreKilled) {
  const CommandResult result =
      run_ranks({"-n", "2", "--grace", "0"},
                "[ $RANK = 1 ] && { sleep 0.3; exit 3; }; trap '' TERM; while true; do sleep 1; done");
  EXPECT_EQ(result.exit_code, 3) << result.describe();
}

TEST(Run, CommandNotFoundStartsNothing) {
  const CommandResult result = run_epistle({"run", "-n", "64", "--", "no-such-program-anywhere"});
  EXPECT_EQ(result.exit_code, 127);
  EXPECT_TRUE(is_error_line(result.err, "no-such-program-anywhere")) << result.err;
}

TEST(Run, ProgramThatCannotBeExecutedIsAnError) {
  const TempDir dir;
  const std::string no_interpreter = dir.write("script", "#!/nonexistent/interpreter\n");
  ::chmod(no_interpreter.c_str(), 0755);
  const CommandResult broken = run_epistle({"run", "-n", "2", "--", no_interpreter});
  EXPECT_EQ(broken.exit_code, 127) << broken.describe();
  EXPECT_TRUE(is_error_line(broken.err, "cannot be executed")) << broken.err;

  const CommandResult plain = run_epistle({"run", "-n", "2", "--", dir.write("data", "x")});
  EXPECT_EQ(plain.exit_code, 127) << plain.describe();
  EXPECT_TRUE(is_error_line(plain.err, "no executable file")) << plain.err;
}

TEST(Run, LabelsStandBeforeEveryLineOfBothStreams) {
  const CommandResult result = run_ranks({"-n", "2", "--label"}, "echo out; echo err >&2; printf unfinished");
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  EXPECT_EQ(sorted_lines(result.out),
            (std::vector<std::string>{"[rank 0] out", "[rank 0] unfinished", "[rank 1] out", "[rank 1] unfinished"}));
  EXPECT_EQ(sorted_lines(result.err), (std::vector<std::string>{"[rank 0] err", "[rank 1] err"}));
  EXPECT_TRUE(result.out.ends_with('\n'));
}

TEST(Run, LabelledLinesAreNeitherMixedNorLost) {
  // Every rank writes lines in two pieces, as fast as it can; more than a pipe holds.
  constexpr int kLines = 3000;
  const std::string script = "i=0; while [ $i -lt " + std::to_string(kLines) +
                             " ]; do printf 'begin-%s-' $RANK; printf '%s-of-%s-end\\n' $i $RANK; i=$((i+1)); done";
  const CommandResult result = run_ranks({"-n", "3", "--label"}, script);
  ASSERT_EQ(result.exit_code, 0) << result.err;
  std::vector<int> next(3, 0);
  for (const std::string& line : split_lines(result.out)) {
    ASSERT_GT(line.size(), 6U) << line;
    const auto rank = static_cast<std::size_t>(line[6] - '0');
    ASSERT_LT(rank, next.size()) << line;
    EXPECT_EQ(line, fmt::format("[rank {0}] begin-{0}-{1}-of-{0}-end", rank, next[rank]));
    ++next[rank];
  }
  EXPECT_EQ(next, std::vector<int>(3, kLines));
}

TEST(Run, LastOutputOfAKilledRankIsKept) {
  const CommandResult result = run_ranks({"-n", "1", "--label"}, "printf 'last words'; kill -9 $$");
  EXPECT_EQ(result.exit_code, 137);
  EXPECT_EQ(result.out, "[rank 0] last words\n");
}

TEST(Run, RankZeroReadsStandardInput) {
  const CommandResult result = run_ranks({"-n", "2", "--label"}, "cat", {.input = "one\ntwo\n"});
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  EXPECT_EQ(result.out, "[rank 0] one\n[rank 0] two\n");
}

TEST(Run, RanksGetNoDescriptorsOfTheLauncher) {
  // Whatever this test inherited goes through to the ranks, as it does without a launcher.
  const std::vector<std::string> list_files = {"ls", "/proc/self/fd"};
  const auto inherited = split_lines(run_command(list_files).out);
  const CommandResult result = run_ranks({"-n", "4", "--label"}, "exec ls /proc/self/fd");
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  EXPECT_EQ(split_lines(result.out).size(), 4 * inherited.size()) << result.out;
  for (const std::string& line : split_lines(result.out)) {
    const std::string fd = line.substr(line.find(']') + 2);
    EXPECT_NE(std::find(inherited.begin(), inherited.end(), fd), inherited.end()) << line;
  }
}

TEST(Run, EndedRanksDoNotStayAsZombies) {
  const std::string script =
      "[ $RANK = 0 ] || exit 0; sleep 0.3; cat /proc/[0-9]*/stat 2>/dev/null | sed 's/.*) //' | grep -c \"^Z $PPID \"";
  const CommandResult result = run_ranks({"-n", "4"}, script, {});
  EXPECT_EQ(result.out, "0\n") << result.describe();
}

}  // namespace
}  // namespace epistle::test
