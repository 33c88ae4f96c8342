// Ranks that were started by a launcher with a PMIx server (mpirun of Open MPI, srun --mpi=pmix) gather texts by it:
// they need no address to meet at. A build without PMIx has without_pmix.cpp in place of pmix/, which says so.
#pragma once

#include <chrono>
#include <string>

#include "epistle/group.hpp"

namespace epistle {

/// What LaunchInfo::address says where ranks of several hosts meet so.
inline constexpr const char* kPmixMeeting = "pmix";

/// Why PMIx cannot be had here; empty where it can.
[[nodiscard]] std::string lack_of_pmix();

/// True where the launcher's variables say that it has a server for this process, as the rank of that number.
[[nodiscard]] bool has_pmix_server(int rank) noexcept;

struct PmixRank {
  int rank = 0;
  int num_ranks = 1;
  std::chrono::milliseconds timeout{0};  ///< of one gathering
};

/// Connects to the launcher's server. Throws kUnsupported without PMIx or a server, kShapeMismatch where that knows
/// this process by another number. Gathering throws kTimeout where ranks do not come.
[[nodiscard]] GatherTexts gather_by_pmix(const PmixRank& rank);

}  // namespace epistle
