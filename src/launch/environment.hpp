// What a rank's process is made of: program, environment, job name.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace epistle {

/// 128 random bits as 32 hexadecimal digits.
[[nodiscard]] std::string make_job_id();

/// The file that `name` stands for, looked up in PATH as execvp(3) does. Throws kNotFound.
[[nodiscard]] std::string find_program(const std::string& name);

struct RankEnvironment {
  int rank = 0;
  int num_ranks = 1;
  std::string job;
  std::vector<std::pair<std::string, std::string>> extra;
};

/// This process's environment with the variables of `description` set and those of other launchers removed, each as
/// "NAME=value".
[[nodiscard]] std::vector<std::string> make_rank_environment(const RankEnvironment& description);

}  // namespace epistle
