// One job from its first process to its last, as the keeper runs it.
#pragma once

#include <csignal>
#include <string>

#include "launch/keeper.hpp"
#include "launch/launcher.hpp"

namespace epistle {

/// Starts the ranks and returns when no process is left of them and of what they started. `executable` is the file to
/// execute, `rank_mask` the ranks' signal mask. To be called in a process that has no other children. Throws what
/// launch_ranks throws.
[[nodiscard]] KeeperResult run_job(const LaunchOptions& options, const std::string& executable,
                                   const sigset_t& rank_mask, Orders& orders);

}  // namespace epistle
