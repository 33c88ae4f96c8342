// What /proc tells about the process that started this one.
#pragma once

#include <string>

namespace epistle {

/// Names the process that started this rank and its siblings, for launchers that give a job no name: the nearest
/// ancestor whose environment lacks `rank_variable`. The parent alone would not do, since each rank may have a wrapper
/// script of its own. Pid and start time, so that a reused pid names another job.
[[nodiscard]] std::string common_ancestor_key(const std::string& rank_variable);

}  // namespace epistle
