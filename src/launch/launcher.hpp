// Starts the ranks of a job as processes of this host and looks after them until the last one has ended.
#pragma once

#include <chrono>
#include <string>
#include <utility>
#include <vector>

namespace epistle {

/// What launch_ranks returns where the command cannot be executed, as shells do.
inline constexpr int kExitCannotExecute = 127;

struct LaunchOptions {
  int num_ranks = 1;
  std::vector<std::string> command;  ///< program and arguments; the program is looked up in PATH
  std::string executable;            ///< the file to execute where it is not command[0]; empty = look up command[0]
  /// Time for the ranks to end by themselves once one has failed, or SIGINT came, before they are stopped. Negative =
  /// 5 s after a failure, 30 s after SIGINT.
  std::chrono::milliseconds grace{-1};
  bool label_output = false;  ///< put "[rank r] " before every line that a rank writes
  /// The exit code by which ranks report the loss of another one; -1 = there is none. A rank that ends so is blamed
  /// only where no rank failed in another way.
  int peer_lost_exit_code = -1;
  /// The ranks say themselves why they exit, so only one that a signal killed gets a line.
  bool ranks_explain_exits = false;
  std::vector<std::pair<std::string, std::string>> environment;  ///< more variables, for every rank
};

/// Runs `command` as ranks 0 to num_ranks - 1 and waits for all of them. Each gets RANK, WORLD_SIZE, LOCAL_RANK,
/// LOCAL_WORLD_SIZE and an EPISTLE_JOB that no other job has; variables of other launchers are removed. Rank 0 reads
/// this process's standard input unless that is a terminal; the others read nothing.
///
/// Returns 0 when all ranks end well; otherwise the exit code of the first rank that failed (128 + signal for a
/// signal), after a line on stderr that names it; 128 + signal when SIGINT, SIGTERM or SIGHUP ended the job; and
/// kExitCannotExecute, with a line on stderr, where the command cannot be executed.
///
/// Every rank leads a process group of its own, which is stopped as a whole. Signals for this process are passed on:
/// after SIGTERM, SIGHUP, a second SIGINT and the grace period all get SIGTERM, and SIGKILL two seconds later.
///
/// When this function has returned, and also soon after this process was killed, nothing is left of what the ranks
/// started: grandchildren, daemons and processes that changed their user included (see launcher_keeper.hpp). What a
/// rank leaves behind gets SIGTERM when all ranks have ended, and SIGKILL two seconds later; SIGKILL at once where this
/// process died. Not reached are processes that this user may not signal, and what other services start on a rank's
/// behalf. To be called before the process starts other threads, which would take the signals.
///
/// Throws kInvalidArgument for impossible options and kSystem where processes cannot be created, output of ranks was
/// lost or a process does not end, unless a rank failed, whose exit code says more; then a line on stderr tells it.
[[nodiscard]] int launch_ranks(const LaunchOptions& options);

/// Options that run this program again, with the arguments it was given, as `num_ranks` ranks.
[[nodiscard]] LaunchOptions relaunch_options(int num_ranks);

}  // namespace epistle
