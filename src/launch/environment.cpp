#include "launch/environment.hpp"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <string_view>

#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

#include "epistle/error.hpp"

#include "core/random_bytes.hpp"

namespace epistle {
namespace {

// A rank started here inside the job of another launcher must not be taken for one of that job's. MASTER_ADDR,
// MASTER_PORT, PMIX_MCA_* and OMPI_MCA_* settings stay: users set them, and alone they describe no rank.
constexpr std::array<std::string_view, 15> kForeignPrefixes = {
    "TORCHELASTIC_",
    "GROUP_RANK=",
    "GROUP_WORLD_SIZE=",
    "ROLE_RANK=",
    "ROLE_WORLD_SIZE=",
    "ROLE_NAME=",
    "OMPI_COMM_WORLD_",
    "OMPI_MCA_ess_",
    "OMPI_MCA_orte_ess_",
    "PMIX_NAMESPACE=",
    "PMIX_RANK=",
    "PMIX_SERVER_",
    "PMI_",
    "MPI_LOCALRANKID=",
    "MPI_LOCALNRANKS=",
};
constexpr std::array<std::string_view, 8> kForeignSlurmPrefixes = {
    "SLURM_PROCID=",   "SLURM_LOCALID=", "SLURM_STEP_",   "SLURM_STEPID=",
    "SLURM_TASK_PID=", "SLURM_GTIDS=",   "SLURM_NTASKS=", "SLURM_NPROCS=",
};

bool is_foreign(std::string_view entry) {
  const auto starts_entry = [entry](std::string_view prefix) { return entry.starts_with(prefix); };
  return std::any_of(kForeignPrefixes.begin(), kForeignPrefixes.end(), starts_entry) ||
         std::any_of(kForeignSlurmPrefixes.begin(), kForeignSlurmPrefixes.end(), starts_entry);
}

bool is_executable_file(const std::string& path) {
  struct stat status {};
  return ::stat(path.c_str(), &status) == 0 && S_ISREG(status.st_mode) && ::access(path.c_str(), X_OK) == 0;
}

}  // namespace

std::string make_job_id() {
  constexpr std::size_t kNameBytes = 16;
  return random_hex(kNameBytes);
}

std::string find_program(const std::string& name) {
  if (name.find('/') != std::string::npos) {
    if (is_executable_file(name)) return name;
    throw Error(ErrorCode::kNotFound,
                fmt::format("'{}' is no executable file; check the path and its permissions", name));
  }
  const char* const variable = std::getenv("PATH");
  std::string_view rest = variable != nullptr ? variable : "/bin:/usr/bin";
  while (!name.empty()) {
    const std::size_t folder_end = std::min(rest.find(':'), rest.size());
    const std::string_view folder = rest.substr(0, folder_end);
    // An empty element is the current directory (POSIX, "Environment Variables").
    std::string path = fmt::format("{}/{}", folder.empty() ? "." : folder, name);
    if (is_executable_file(path)) return path;
    if (folder_end == rest.size()) break;
    rest.remove_prefix(folder_end + 1);
  }
  throw Error(ErrorCode::kNotFound,
              fmt::format("no program '{}' in PATH; check the name, or give a path with a slash", name));
}

std::vector<std::string> make_rank_environment(const RankEnvironment& description) {
  std::vector<std::pair<std::string, std::string>> variables = {
      {"RANK", std::to_string(description.rank)},
      {"WORLD_SIZE", std::to_string(description.num_ranks)},
      {"LOCAL_RANK", std::to_string(description.rank)},
      {"LOCAL_WORLD_SIZE", std::to_string(description.num_ranks)},
      {"EPISTLE_JOB", description.job},
  };
  variables.insert(variables.end(), description.extra.begin(), description.extra.end());
  const auto is_replaced = [&](std::string_view entry) {
    return std::any_of(variables.begin(), variables.end(), [entry](const auto& variable) {
      return entry.starts_with(variable.first) && entry.substr(variable.first.size()).starts_with('=');
    });
  };

  std::vector<std::string> entries;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    if (!is_foreign(*entry) && !is_replaced(*entry)) entries.emplace_back(*entry);
  }
  for (const auto& [name, value] : variables) entries.push_back(fmt::format("{}={}", name, value));
  return entries;
}

}  // namespace epistle
