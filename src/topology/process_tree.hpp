// What /proc tells about the processes above and below this one.
#pragma once

#include <string>
#include <vector>

#include <sys/types.h>

namespace epistle {

/// Names the process that started this rank and its siblings, for launchers that give a job no name: the nearest
/// ancestor whose environment lacks `rank_variable`. The parent alone would not do, since each rank may have a wrapper
/// script of its own. Pid and start time, so that a reused pid names another job.
[[nodiscard]] std::string common_ancestor_key(const std::string& rank_variable);

/// The children of this process, those that it has not reaped yet included. None where /proc is not mounted.
[[nodiscard]] std::vector<pid_t> own_children();

/// The name of the program that runs as `pid`, "?" where there is none.
[[nodiscard]] std::string process_name(pid_t pid);

}  // namespace epistle
