// A progress bar for people who wait: on a terminal only, and gone when the work is done.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>

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
  /// Draws on `fd` where that is a terminal; nothing at all with `quiet` or in a pipe. The line is drawn by a thread of
  /// its own, so that the clock goes on while a step takes long; nothing shows for work that is done in a moment.
  explicit Progress(std::string label, bool quiet = false, int fd = STDERR_FILENO);
  ~Progress() { finish(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// Another task follows: its time starts now, how far it goes is not known yet.
  void begin(std::string label);

  /// Cheap to call often.
  void update(std::int64_t done, std::int64_t total);

  /// Clears the line for good.
  void finish();

 private:
  using Clock = std::chrono::steady_clock;

  void draw_until_finished();
  void write(const std::string& text) const;

  int fd_;
  std::mutex mutex_;  ///< guards everything up to the thread
  std::condition_variable finished_changed_;
  ProgressState state_;
  Clock::time_point start_ = Clock::now();
  bool finished_ = false;
  bool drawn_ = false;
  std::thread thread_;
};

}  // namespace epistle
