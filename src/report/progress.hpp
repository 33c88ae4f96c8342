// A progress bar for people who wait: on a terminal only, and gone when the work is done.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include <unistd.h>

namespace epistle {

struct ProgressState {
  std::string label;
  std::int64_t done = 0;
  std::int64_t total = 0;  ///< 0 = not known
  double elapsed_s = 0.0;
};

/// One line of at most `max_columns`: "label [####----]  42%  elapsed 0:03  left 0:04".
[[nodiscard]] std::string render_progress(const ProgressState& state, int max_columns);

class Progress {
 public:
  /// Draws on `fd` where that is a terminal; nothing at all with `quiet` or in a pipe.
  explicit Progress(std::string label, bool quiet = false, int fd = STDERR_FILENO);
  ~Progress() { finish(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// Cheap to call often: it redraws a few times per second, and not before the work has taken a moment.
  void update(std::int64_t done, std::int64_t total);

  /// Clears the line.
  void finish();

 private:
  using Clock = std::chrono::steady_clock;

  void write(const std::string& text) const;

  std::string label_;
  int fd_;
  bool enabled_;
  bool drawn_ = false;
  Clock::time_point start_ = Clock::now();
  Clock::time_point next_draw_;
};

}  // namespace epistle
