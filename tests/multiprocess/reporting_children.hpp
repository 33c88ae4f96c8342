// Child processes that say how they ended: through memory they share with the test, which they cannot fail to reach.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <sys/types.h>

#include "epistle/error.hpp"

namespace epistle::testing {

/// Written by a child.
struct ChildReport {
  bool threw = false;  ///< an epistle::Error; the fields below are the error's
  ErrorCode code = ErrorCode::kOk;
  int peer_rank = -1;
  Phase phase = Phase::kNone;
  std::int64_t missing_rows = -1;
  std::int64_t took_ms = 0;        ///< from the child's start to its end
  bool has_shared_memory = false;  ///< still, after everything was destroyed
  int progress = -1;               ///< for the body's own use
  bool returned = false;           ///< got to the end of its function
  char message[480] = {};
};

/// The children of one test. Whatever is left of them is killed when the test ends.
class ReportingChildren {
 public:
  using Body = std::function<void(ChildReport& report)>;

  /// Forks one child per body. An epistle::Error that a body throws goes to its report.
  explicit ReportingChildren(const std::vector<Body>& bodies);
  ~ReportingChildren();
  ReportingChildren(const ReportingChildren&) = delete;
  ReportingChildren& operator=(const ReportingChildren&) = delete;

  [[nodiscard]] std::size_t size() const noexcept { return pids_.size(); }
  [[nodiscard]] const ChildReport& report(std::size_t idx) const { return reports_[idx]; }
  /// Waits for a child's end: its wait status, or nothing (-1) when `timeout` is over first.
  [[nodiscard]] int wait(std::size_t idx, std::chrono::milliseconds timeout = std::chrono::seconds(60));
  /// Waits until a child is stopped; false when `timeout` is over first.
  [[nodiscard]] bool wait_stopped(std::size_t idx, std::chrono::milliseconds timeout = std::chrono::seconds(60));
  void send(std::size_t idx, int signal) const;

 private:
  [[nodiscard]] bool poll_status(std::size_t idx, int options, int& status, std::chrono::milliseconds timeout);

  ChildReport* reports_ = nullptr;
  std::vector<pid_t> pids_;
  std::vector<bool> reaped_;
};

/// Files and mappings of shared memory that this process has: of a library that cleans up, none.
[[nodiscard]] std::vector<std::string> shared_memory_of_this_process();

/// Names in /dev/shm that could be the library's.
[[nodiscard]] std::vector<std::string> named_shared_memory();

}  // namespace epistle::testing
