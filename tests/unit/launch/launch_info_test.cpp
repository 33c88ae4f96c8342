#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "epistle/error.hpp"
#include "epistle/group.hpp"

#include "group/net/pmix_gathering.hpp"
#include "support/environment.hpp"

namespace epistle {
namespace {

using Variables = std::vector<std::pair<std::string, std::string>>;

// Everything that the reader looks at, so that the launcher of this test itself is not seen.
const std::vector<std::string> kAllVariables = {"EPISTLE_JOB",
                                                "RANK",
                                                "WORLD_SIZE",
                                                "LOCAL_RANK",
                                                "LOCAL_WORLD_SIZE",
                                                "TORCHELASTIC_RUN_ID",
                                                "TORCHELASTIC_RESTART_COUNT",
                                                "MASTER_ADDR",
                                                "MASTER_PORT",
                                                "OMPI_COMM_WORLD_RANK",
                                                "OMPI_COMM_WORLD_SIZE",
                                                "OMPI_COMM_WORLD_LOCAL_RANK",
                                                "OMPI_COMM_WORLD_LOCAL_SIZE",
                                                "OMPI_MCA_ess_base_jobid",
                                                "PMIX_NAMESPACE",
                                                "PMIX_RANK",
                                                "PMI_RANK",
                                                "PMI_SIZE",
                                                "PMI_JOBID",
                                                "PMI_LOCAL_RANK",
                                                "PMI_LOCAL_SIZE",
                                                "MPI_LOCALRANKID",
                                                "MPI_LOCALNRANKS",
                                                "SLURM_PROCID",
                                                "SLURM_NTASKS",
                                                "SLURM_STEP_NUM_TASKS",
                                                "SLURM_LOCALID",
                                                "SLURM_JOB_ID",
                                                "SLURM_JOBID",
                                                "SLURM_STEP_ID",
                                                "SLURM_STEPID",
                                                "SLURM_NNODES",
                                                "SLURM_NODELIST",
                                                "SLURM_STEP_NODELIST",
                                                "SLURM_STEP_NUM_NODES"};

class LaunchInfoTest : public ::testing::Test {
 protected:
  LaunchInfoTest() { clear(); }

  void clear() {
    for (const std::string& name : kAllVariables) environment_.unset(name);
  }
  void set(const Variables& variables) {
    clear();
    add(variables);
  }
  void add(const Variables& variables) {
    for (const auto& [name, value] : variables) environment_.set(name, value);
  }

  static std::pair<ErrorCode, std::string> read_error() {
    try {
      static_cast<void>(read_launch_info());
    } catch (const Error& error) {
      return {error.code(), error.what()};
    }
    return {ErrorCode::kOk, ""};
  }

  test::ScopedEnvironment environment_;
};

const Variables kEpistle = {
    {"EPISTLE_JOB", "abc"}, {"RANK", "1"}, {"WORLD_SIZE", "4"}, {"LOCAL_RANK", "1"}, {"LOCAL_WORLD_SIZE", "4"}};
const Variables kTorchrun = {{"RANK", "3"},
                             {"WORLD_SIZE", "4"},
                             {"LOCAL_RANK", "3"},
                             {"LOCAL_WORLD_SIZE", "4"},
                             {"MASTER_ADDR", "127.0.0.1"},
                             {"MASTER_PORT", "29500"},
                             {"TORCHELASTIC_RUN_ID", "none"},
                             {"TORCHELASTIC_RESTART_COUNT", "0"}};
const Variables kOpenMpi = {{"OMPI_COMM_WORLD_RANK", "2"},
                            {"OMPI_COMM_WORLD_SIZE", "3"},
                            {"OMPI_COMM_WORLD_LOCAL_RANK", "2"},
                            {"OMPI_COMM_WORLD_LOCAL_SIZE", "3"},
                            {"PMIX_NAMESPACE", "prterun-host-77@1"}};
const Variables kHydra = {{"PMI_RANK", "0"}, {"PMI_SIZE", "2"}, {"MPI_LOCALRANKID", "0"}, {"MPI_LOCALNRANKS", "2"}};
const Variables kSlurm = {{"SLURM_JOB_ID", "900"},       {"SLURM_STEP_ID", "2"}, {"SLURM_PROCID", "5"},
                          {"SLURM_STEP_NUM_TASKS", "8"}, {"SLURM_NTASKS", "8"},  {"SLURM_LOCALID", "5"},
                          {"SLURM_STEP_NUM_NODES", "1"}, {"SLURM_NNODES", "1"}};

TEST_F(LaunchInfoTest, NothingSetIsNotLaunched) {
  EXPECT_FALSE(is_launched());
  EXPECT_EQ(read_error().first, ErrorCode::kNotFound);
  EXPECT_NE(read_error().second.find("epistle run"), std::string::npos) << read_error().second;
}

TEST_F(LaunchInfoTest, EmptyVariablesAreNotSet) {
  set({{"EPISTLE_JOB", ""}, {"RANK", ""}, {"WORLD_SIZE", ""}});
  EXPECT_FALSE(is_launched());
}

TEST_F(LaunchInfoTest, ReadsEpistle) {
  set(kEpistle);
  ASSERT_TRUE(is_launched());
  const LaunchInfo info = read_launch_info();
  EXPECT_EQ(info.launcher, "epistle");
  EXPECT_EQ(info.rank, 1);
  EXPECT_EQ(info.num_ranks, 4);
  EXPECT_EQ(info.local_rank, 1);
  EXPECT_NE(info.job.find("abc"), std::string::npos);
}

TEST_F(LaunchInfoTest, ReadsTorchrun) {
  set(kTorchrun);
  ASSERT_TRUE(is_launched());
  const LaunchInfo info = read_launch_info();
  EXPECT_EQ(info.launcher, "torchrun");
  EXPECT_EQ(info.rank, 3);
  EXPECT_EQ(info.num_ranks, 4);
  EXPECT_EQ(info.local_rank, 3);
}

TEST_F(LaunchInfoTest, TorchrunJobsDifferByIdPortAndRestart) {
  set(kTorchrun);
  const std::string job = read_launch_info().job;
  EXPECT_EQ(read_launch_info().job, job);
  for (const auto& [name, value] :
       Variables{{"TORCHELASTIC_RUN_ID", "other"}, {"MASTER_PORT", "29501"}, {"TORCHELASTIC_RESTART_COUNT", "1"}}) {
    set(kTorchrun);
    environment_.set(name, value);
    EXPECT_NE(read_launch_info().job, job) << name;
  }
}

TEST_F(LaunchInfoTest, ReadsVariablesSetByHand) {
  set({{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "localhost"}, {"MASTER_PORT", "1234"}});
  const LaunchInfo info = read_launch_info();
  EXPECT_EQ(info.launcher, "torchrun");
  EXPECT_EQ(info.num_ranks, 2);
  EXPECT_NE(info.job.find("1234"), std::string::npos) << info.job;
}

TEST_F(LaunchInfoTest, ReadsOpenMpi) {
  set(kOpenMpi);
  const LaunchInfo info = read_launch_info();
  EXPECT_EQ(info.launcher, "openmpi");
  EXPECT_EQ(info.rank, 2);
  EXPECT_EQ(info.num_ranks, 3);
  EXPECT_EQ(info.local_rank, 2);
  EXPECT_NE(info.job.find("prterun-host-77@1"), std::string::npos);

  environment_.unset("PMIX_NAMESPACE");
  environment_.set("OMPI_MCA_ess_base_jobid", "4321");
  EXPECT_NE(read_launch_info().job.find("4321"), std::string::npos);
}

TEST_F(LaunchInfoTest, ReadsHydra) {
  set(kHydra);
  const LaunchInfo info = read_launch_info();
  EXPECT_EQ(info.launcher, "pmi");
  EXPECT_EQ(info.rank, 0);
  EXPECT_EQ(info.num_ranks, 2);
}

TEST_F(LaunchInfoTest, MissingJobNameFallsBackToTheStartingProcess) {
  set(kHydra);
  const std::string job = read_launch_info().job;
  EXPECT_NE(job.find("pid "), std::string::npos) << job;
  EXPECT_EQ(read_launch_info().job, job);
  set({{"RANK", "0"}, {"WORLD_SIZE", "2"}});
  EXPECT_NE(read_launch_info().job.find("pid "), std::string::npos);
}

TEST_F(LaunchInfoTest, ReadsCrayPmi) {
  set({{"PMI_RANK", "1"}, {"PMI_SIZE", "2"}, {"PMI_LOCAL_RANK", "1"}, {"PMI_LOCAL_SIZE", "2"}, {"PMI_JOBID", "xyz"}});
  const LaunchInfo info = read_launch_info();
  EXPECT_EQ(info.local_rank, 1);
  EXPECT_NE(info.job.find("xyz"), std::string::npos);
}

TEST_F(LaunchInfoTest, ReadsSlurm) {
  set(kSlurm);
  ASSERT_TRUE(is_launched());
  const LaunchInfo info = read_launch_info();
  EXPECT_EQ(info.launcher, "slurm");
  EXPECT_EQ(info.rank, 5);
  EXPECT_EQ(info.num_ranks, 8);
  EXPECT_EQ(info.local_rank, 5);
  EXPECT_NE(info.job.find("900.2"), std::string::npos) << info.job;
}

TEST_F(LaunchInfoTest, SlurmAllocationShellsAreNotLaunched) {
  // salloc: no task variables at all.
  set({{"SLURM_JOB_ID", "900"}, {"SLURM_NTASKS", "8"}, {"SLURM_NNODES", "1"}});
  EXPECT_FALSE(is_launched());
  // sbatch: the script looks like task 0, but belongs to no step.
  add({{"SLURM_PROCID", "0"}, {"SLURM_LOCALID", "0"}});
  EXPECT_FALSE(is_launched());
  // salloc that starts an interactive step (SLURM_INTERACTIVE_STEP).
  add({{"SLURM_STEP_ID", "4294967290"}, {"SLURM_STEP_NUM_TASKS", "8"}});
  EXPECT_FALSE(is_launched());
  // srun --pty bash: a step of one task.
  add({{"SLURM_STEP_ID", "0"}, {"SLURM_STEP_NUM_TASKS", "1"}});
  EXPECT_FALSE(is_launched());
  // The same where Slurm provides PMI-2 to every step.
  add({{"PMI_RANK", "0"}, {"PMI_SIZE", "1"}, {"PMI_JOBID", "900.0"}});
  EXPECT_FALSE(is_launched());
}

TEST_F(LaunchInfoTest, OneRankOfMpiexecIsLaunched) {
  set({{"PMI_RANK", "0"}, {"PMI_SIZE", "1"}});
  EXPECT_TRUE(is_launched());
  EXPECT_EQ(read_launch_info().num_ranks, 1);
}

TEST_F(LaunchInfoTest, InnermostLauncherWins) {
  set(kSlurm);
  add(kHydra);
  EXPECT_EQ(read_launch_info().launcher, "pmi");
  add(kOpenMpi);
  EXPECT_EQ(read_launch_info().launcher, "openmpi");
  add(kTorchrun);
  EXPECT_EQ(read_launch_info().launcher, "torchrun");
  add(kEpistle);
  EXPECT_EQ(read_launch_info().launcher, "epistle");
}

TEST_F(LaunchInfoTest, LocalRankDefaultsToRank) {
  set({{"EPISTLE_JOB", "abc"}, {"RANK", "2"}, {"WORLD_SIZE", "4"}});
  EXPECT_EQ(read_launch_info().local_rank, 2);
}

TEST_F(LaunchInfoTest, MalformedNumbersNameTheVariable) {
  const Variables cases = {{"RANK", "4"},       {"RANK", "-1"},        {"RANK", "one"},
                           {"RANK", "1x"},      {"WORLD_SIZE", "0"},   {"WORLD_SIZE", "99999999999"},
                           {"LOCAL_RANK", "7"}, {"WORLD_SIZE", "4.0"}, {"LOCAL_WORLD_SIZE", "?"}};
  for (const auto& [name, value] : cases) {
    set(kEpistle);
    environment_.set(name, value);
    EXPECT_TRUE(is_launched());
    const auto [code, message] = read_error();
    EXPECT_EQ(code, ErrorCode::kInvalidArgument) << name << "=" << value;
    EXPECT_NE(message.find(fmt::format("{} is '{}'", name, value)), std::string::npos) << message;
  }
}

TEST_F(LaunchInfoTest, MissingCountsNameTheVariable) {
  for (const char* const name : {"RANK", "WORLD_SIZE"}) {
    set(kEpistle);
    environment_.unset(name);
    const auto [code, message] = read_error();
    EXPECT_EQ(code, ErrorCode::kInvalidArgument);
    EXPECT_NE(message.find(std::string(name) + " is not set"), std::string::npos) << message;
  }
  set(kSlurm);
  environment_.set("SLURM_STEP_NUM_TASKS", "many");
  EXPECT_TRUE(is_launched());
  EXPECT_EQ(read_error().first, ErrorCode::kInvalidArgument);
}

const std::vector<std::pair<Variables, std::pair<std::string, std::string>>> kJobsOfSeveralHosts = {
    {kTorchrun, {"LOCAL_WORLD_SIZE", "2"}},
    {kOpenMpi, {"OMPI_COMM_WORLD_LOCAL_SIZE", "1"}},
    {kHydra, {"MPI_LOCALNRANKS", "1"}},
    {kSlurm, {"SLURM_STEP_NUM_NODES", "2"}}};

TEST_F(LaunchInfoTest, SeveralHostsMeetBehindTheMasterPort) {
  for (const auto& [variables, change] : kJobsOfSeveralHosts) {
    set(variables);
    EXPECT_EQ(read_launch_info().address, "") << change.first;
    environment_.set(change.first, change.second);
    environment_.set("MASTER_ADDR", "node7");
    environment_.set("MASTER_PORT", "4000");
    const LaunchInfo info = read_launch_info();
    EXPECT_EQ(info.address, "node7:4001") << change.first;
    EXPECT_FALSE(info.job.empty());
  }
  environment_.set("MASTER_ADDR", "fd00::7");
  environment_.unset("MASTER_PORT");
  EXPECT_EQ(read_launch_info().address, "[fd00::7]:29501");
  environment_.set("MASTER_ADDR", "[fd00::7]");
  EXPECT_EQ(read_launch_info().address, "[fd00::7]:29501");
}

TEST_F(LaunchInfoTest, JobOfSeveralHostsHasTheSameNameOnAll) {
  // Hydra names no job; what started a rank is another process on every host.
  set(kHydra);
  add({{"MPI_LOCALNRANKS", "1"}, {"MASTER_ADDR", "node7"}});
  EXPECT_EQ(read_launch_info().job, "pmi:node7:29501");
}

TEST_F(LaunchInfoTest, RanksOfALauncherWithPmixNeedNoAddress) {
  const bool is_built = lack_of_pmix().find("this build has no PMIx") == std::string::npos;
  set(kOpenMpi);
  add({{"OMPI_COMM_WORLD_LOCAL_SIZE", "1"}, {"PMIX_RANK", "2"}});
  if (is_built) {
    EXPECT_EQ(read_launch_info().address, "pmix");
  } else {
    EXPECT_EQ(read_error().first, ErrorCode::kInvalidArgument);
  }
  // What the user says goes first; variables of another launcher's server do not count.
  environment_.set("MASTER_ADDR", "node7");
  EXPECT_EQ(read_launch_info().address, "node7:29501");
  environment_.unset("MASTER_ADDR");
  environment_.set("PMIX_RANK", "1");
  EXPECT_EQ(read_error().first, ErrorCode::kInvalidArgument);
}

TEST_F(LaunchInfoTest, SeveralHostsWithoutAPlaceToMeetSayWhatToSet) {
  for (const auto& [variables, change] : kJobsOfSeveralHosts) {
    set(variables);
    environment_.set(change.first, change.second);
    environment_.unset("MASTER_ADDR");
    const auto [code, message] = read_error();
    EXPECT_EQ(code, ErrorCode::kInvalidArgument) << change.first;
    EXPECT_NE(message.find("set MASTER_ADDR"), std::string::npos) << message;
  }
  // The step counts, not the job around it.
  set(kSlurm);
  environment_.set("SLURM_NNODES", "4");
  EXPECT_EQ(read_error().first, ErrorCode::kOk);
  environment_.unset("SLURM_STEP_NUM_NODES");
  EXPECT_EQ(read_error().first, ErrorCode::kInvalidArgument);
}

TEST_F(LaunchInfoTest, SlurmTellsTheFirstNode) {
  const Variables cases = {{"n1", "n1"},
                           {"n1,n2", "n1"},
                           {"n[3-5,9]", "n3"},
                           {"gpu[007,009]", "gpu007"},
                           {"rack[2-4]-a,login", "rack2-a"},
                           {"login,gpu[1-2]", "login"}};
  for (const auto& [list, first] : cases) {
    set(kSlurm);
    add({{"SLURM_STEP_NUM_NODES", "2"}, {"SLURM_STEP_NODELIST", list}});
    EXPECT_EQ(read_launch_info().address, first + ":29501") << list;
  }
}

}  // namespace
}  // namespace epistle
