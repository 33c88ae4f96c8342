// Runs a program that may crash or hang, for a limited time.
#pragma once

#include <chrono>
#include <string>
#include <vector>

namespace epistle::cli {

struct BoundedRun {
  bool timed_out = false;
  int signal = 0;      ///< 0 where it exited
  int exit_code = -1;  ///< -1 where it did not
  std::string out;     ///< the first megabyte
  std::string err;

  [[nodiscard]] bool succeeded() const noexcept { return !timed_out && signal == 0 && exit_code == 0; }
  /// "exited with code 1", "was ended by signal 11", "did not end within 20 s"
  [[nodiscard]] std::string describe() const;

  std::chrono::milliseconds limit{0};
};

/// `command[0]` is looked for on PATH. Its process group is killed when the time is over. Throws kSystem where no
/// process can be made.
[[nodiscard]] BoundedRun run_bounded(const std::vector<std::string>& command, std::chrono::milliseconds limit);

}  // namespace epistle::cli
