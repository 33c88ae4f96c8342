// Where launchers say which rank a process is. Every launcher is a row of one table: the variables it sets, how its
// presence is told from variables that merely leaked in, and what names the job.
#include <algorithm>
#include <array>
#include <charconv>
#include <cstdlib>
#include <limits>
#include <optional>

#include <fmt/format.h>

#include "epistle/error.hpp"
#include "epistle/group.hpp"

#include "group/net/pmix_gathering.hpp"
#include "topology/process_tree.hpp"

namespace epistle {
namespace {

/// Names of variables that mean the same; the first one that is set counts.
using Names = std::array<const char*, 2>;

struct Launcher {
  const char* name;
  Names rank;
  Names num_ranks;
  Names local_rank;  ///< optional: on one host a rank's number serves as well
  Names num_local_ranks;
  Names num_hosts;
  bool (*is_present)() noexcept;
  std::string (*job)();  ///< empty = the launcher gives none
};

struct Variable {
  const char* name;
  std::string_view value;
};

/// An empty variable counts as not set: that is how wrappers blank out what they cannot unset.
std::optional<Variable> find_variable(const Names& names) noexcept {
  for (const char* const name : names) {
    if (name == nullptr) continue;
    const char* const value = std::getenv(name);
    if (value != nullptr && *value != '\0') return Variable{name, value};
  }
  return std::nullopt;
}

bool is_set(const char* name) noexcept { return find_variable({name}).has_value(); }

std::string value_or_empty(const Names& names) {
  const auto variable = find_variable(names);
  return variable ? std::string(variable->value) : std::string();
}

std::optional<std::int64_t> parse_integer(std::string_view text) noexcept {
  std::int64_t value = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (status != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value;
}

// Step ids from here on are no srun tasks: batch script, extern container, interactive shell, pending step
// (SLURM_MAX_NORMAL_STEP_ID in slurm.h).
constexpr std::int64_t kFirstReservedSlurmStep = 0xfffffff0;
constexpr Names kSlurmNumTasks = {"SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"};

/// The shell of salloc and the script of sbatch carry SLURM_JOB_ID, SLURM_NTASKS and even SLURM_PROCID=0; only a task
/// of a numbered step was started by srun.
bool is_slurm_task() noexcept {
  const auto step = find_variable({"SLURM_STEP_ID", "SLURM_STEPID"});
  if (!step || !is_set("SLURM_PROCID")) return false;
  const auto step_id = parse_integer(step->value);
  return step_id && *step_id >= 0 && *step_id < kFirstReservedSlurmStep;
}

/// A step of one task is as likely a shell (srun --pty) as a rank, so it does not count. A malformed count does: the
/// reader then says what is wrong with it.
bool is_slurm_rank() noexcept {
  if (!is_slurm_task()) return false;
  const auto num_tasks = find_variable(kSlurmNumTasks);
  return !num_tasks || parse_integer(num_tasks->value) != 1;
}

/// Slurm with PMI-2 as its default sets PMI_RANK=0 and PMI_SIZE=1 in such a shell, too.
bool is_pmi_rank() noexcept {
  if (!is_set("PMI_RANK")) return false;
  return !(is_slurm_task() && value_or_empty({"PMI_SIZE"}) == "1");
}

bool is_torchrun_rank() noexcept { return is_set("RANK") && (is_set("WORLD_SIZE") || is_set("TORCHELASTIC_RUN_ID")); }

/// The run id alone is "none" unless the user chose one, and the port alone is 29500; the restart count keeps the
/// ranks of a restarted run apart from those that are still dying.
std::string torchrun_job() {
  const std::string run_id = value_or_empty({"TORCHELASTIC_RUN_ID"});
  const std::string port = value_or_empty({"MASTER_PORT"});
  if (run_id.empty() && port.empty()) return {};
  return fmt::format("{}/{}:{}/{}", run_id, value_or_empty({"MASTER_ADDR"}), port,
                     value_or_empty({"TORCHELASTIC_RESTART_COUNT"}));
}

std::string slurm_job() {
  return fmt::format("{}.{}", value_or_empty({"SLURM_JOB_ID", "SLURM_JOBID"}),
                     value_or_empty({"SLURM_STEP_ID", "SLURM_STEPID"}));
}

// In order of precedence: a launcher that starts another one's ranks stands before it. Slurm is last, since mpirun and
// mpiexec use srun to start their daemons, whose variables the ranks inherit.
constexpr std::array<Launcher, 5> kLaunchers = {{
    {.name = "epistle",
     .rank = {"RANK"},
     .num_ranks = {"WORLD_SIZE"},
     .local_rank = {"LOCAL_RANK"},
     .num_local_ranks = {"LOCAL_WORLD_SIZE"},
     .num_hosts = {},
     .is_present = []() noexcept { return is_set("EPISTLE_JOB"); },
     .job = [] { return value_or_empty({"EPISTLE_JOB"}); }},
    {.name = "torchrun",
     .rank = {"RANK"},
     .num_ranks = {"WORLD_SIZE"},
     .local_rank = {"LOCAL_RANK"},
     .num_local_ranks = {"LOCAL_WORLD_SIZE"},
     .num_hosts = {},
     .is_present = is_torchrun_rank,
     .job = torchrun_job},
    {.name = "openmpi",
     .rank = {"OMPI_COMM_WORLD_RANK"},
     .num_ranks = {"OMPI_COMM_WORLD_SIZE"},
     .local_rank = {"OMPI_COMM_WORLD_LOCAL_RANK"},
     .num_local_ranks = {"OMPI_COMM_WORLD_LOCAL_SIZE"},
     .num_hosts = {},
     .is_present = []() noexcept { return is_set("OMPI_COMM_WORLD_RANK"); },
     .job =
         [] {
           return value_or_empty({"PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"});
         }},
    // MPICH and Intel MPI (Hydra) call the local numbers MPI_LOCAL*, Cray PALS PMI_LOCAL_*. Hydra gives no job id.
    {.name = "pmi",
     .rank = {"PMI_RANK"},
     .num_ranks = {"PMI_SIZE"},
     .local_rank = {"MPI_LOCALRANKID", "PMI_LOCAL_RANK"},
     .num_local_ranks = {"MPI_LOCALNRANKS", "PMI_LOCAL_SIZE"},
     .num_hosts = {},
     .is_present = is_pmi_rank,
     .job = [] { return value_or_empty({"PMI_JOBID"}); }},
    {.name = "slurm",
     .rank = {"SLURM_PROCID"},
     .num_ranks = kSlurmNumTasks,
     .local_rank = {"SLURM_LOCALID"},
     .num_local_ranks = {},
     .num_hosts = {"SLURM_STEP_NUM_NODES", "SLURM_NNODES"},
     .is_present = is_slurm_rank,
     .job = slurm_job},
}};

const Launcher* find_launcher() noexcept {
  const auto* const found = std::find_if(kLaunchers.begin(), kLaunchers.end(),
                                         [](const Launcher& launcher) { return launcher.is_present(); });
  return found == kLaunchers.end() ? nullptr : found;
}

/// A non-negative number below `end`, or nothing where no variable of `names` is set.
std::optional<int> read_number(const Launcher& launcher, const Names& names, std::int64_t begin, std::int64_t end) {
  const auto variable = find_variable(names);
  if (!variable) return std::nullopt;
  const auto value = parse_integer(variable->value);
  if (!value || *value < begin || *value >= end) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("{} is '{}', but must be a whole number from {} to {} ({} set it); start the job again, or "
                            "unset the variables of launchers that did not start this process",
                            variable->name, variable->value, begin, end - 1, launcher.name));
  }
  return static_cast<int>(*value);
}

int require_number(const Launcher& launcher, const Names& names, std::int64_t begin, std::int64_t end) {
  if (const auto value = read_number(launcher, names, begin, end)) return *value;
  throw Error(ErrorCode::kInvalidArgument,
              fmt::format("{} is not set, though other variables say that {} started this process; start the job "
                          "again, or unset the variables of launchers that did not start this process",
                          names[0], launcher.name));
}

bool spans_hosts(const Launcher& launcher, int num_ranks) {
  constexpr std::int64_t kIntEnd = std::int64_t{std::numeric_limits<int>::max()} + 1;
  const auto num_local = read_number(launcher, launcher.num_local_ranks, 1, kIntEnd);
  const auto num_hosts = read_number(launcher, launcher.num_hosts, 1, kIntEnd);
  return (num_local && *num_local != num_ranks) || (num_hosts && *num_hosts > 1);
}

/// The first host of a list as Slurm writes it: "node[003-004,9],login" begins with "node003".
std::string first_of_node_list(std::string_view list) {
  const std::size_t bracket = list.find('[');
  const std::size_t comma = list.find(',');
  if (bracket == std::string_view::npos || comma < bracket) return std::string(list.substr(0, comma));
  const std::size_t number_end = list.find_first_of("-,]", bracket);
  const std::size_t close = list.find(']', bracket);
  if (number_end == std::string_view::npos || close == std::string_view::npos) return {};
  const std::string_view rest = list.substr(close + 1);
  return fmt::format("{}{}{}", list.substr(0, bracket), list.substr(bracket + 1, number_end - bracket - 1),
                     rest.substr(0, rest.find(',')));
}

/// Where ranks of several hosts meet: where the user says, by the launcher's server, or on the first host of its list.
/// MASTER_PORT itself is torchrun's own.
std::string meeting_address(const Launcher& launcher, int rank, int num_ranks) {
  constexpr int kDefaultMasterPort = 29500;
  constexpr int kPortEnd = 65535;
  std::string host = value_or_empty({"MASTER_ADDR"});
  if (host.empty() && has_pmix_server(rank)) return kPmixMeeting;
  if (host.empty()) host = first_of_node_list(value_or_empty({"SLURM_STEP_NODELIST", "SLURM_NODELIST"}));
  if (host.empty()) {
    throw Error(
        ErrorCode::kInvalidArgument,
        fmt::format(
            "{} started {} ranks on several hosts, and nothing says where they meet; set MASTER_ADDR to "
            "the name or the address of rank 0's host on all ranks (mpirun -x MASTER_ADDR=...), or let a launcher "
            "with PMIx start them (mpirun of Open MPI, srun --mpi=pmix) and build with libpmix-dev",
            launcher.name, num_ranks));
  }
  const int master_port = read_number(launcher, {"MASTER_PORT"}, 1, kPortEnd).value_or(kDefaultMasterPort);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  const bool is_number = host.find(':') != std::string::npos;
  return is_number ? fmt::format("[{}]:{}", host, master_port + 1) : fmt::format("{}:{}", host, master_port + 1);
}

}  // namespace

bool is_launched() noexcept { return find_launcher() != nullptr; }

LaunchInfo read_launch_info() {
  const Launcher* const launcher = find_launcher();
  if (launcher == nullptr) {
    throw Error(ErrorCode::kNotFound,
                "this process was not started as one of several ranks: no variables of epistle run, torchrun, Open "
                "MPI, PMI or a Slurm task are set; start it with 'epistle run -n N -- PROGRAM'");
  }
  constexpr std::int64_t kIntEnd = std::int64_t{std::numeric_limits<int>::max()} + 1;
  LaunchInfo info;
  info.launcher = launcher->name;
  info.num_ranks = require_number(*launcher, launcher->num_ranks, 1, kIntEnd);
  info.rank = require_number(*launcher, launcher->rank, 0, info.num_ranks);
  if (spans_hosts(*launcher, info.num_ranks)) info.address = meeting_address(*launcher, info.rank, info.num_ranks);
  info.local_rank = read_number(*launcher, launcher->local_rank, 0, info.num_ranks).value_or(info.rank);

  std::string job = launcher->job();
  if (job.empty() && !info.address.empty()) job = info.address;
  if (job.empty()) job = common_ancestor_key(find_variable(launcher->rank)->name);
  // The name keeps apart jobs of two launchers that number them alike.
  info.job = fmt::format("{}:{}", launcher->name, job);
  return info;
}

}  // namespace epistle
