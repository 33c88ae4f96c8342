#include "group/launcher.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <optional>

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "epistle/error.hpp"

#include "core/log.hpp"
#include "core/settings.hpp"
#include "group/launcher_child.hpp"
#include "group/launcher_environment.hpp"
#include "group/launcher_output.hpp"
#include "group/launcher_signals.hpp"
#include "group/limits.hpp"

namespace epistle {
namespace {

using Clock = std::chrono::steady_clock;

/// After the timeout every survivor has noticed a lost rank; this long it may take to say so and exit.
constexpr std::chrono::seconds kReportTime{5};
/// Between SIGTERM and SIGKILL.
constexpr std::chrono::seconds kKillDelay{2};

enum class Stage {
  kRunning,
  kGrace,       ///< a rank failed; the others may still report
  kTerminated,  ///< all were sent SIGTERM
  kKilled,      ///< all were sent SIGKILL
};

struct Failure {
  int rank = 0;
  pid_t pid = 0;
  ChildEnd end;
};

/// Descriptors 0 to 2 must be taken: a pipe that got one of these numbers would be overwritten when a rank's own
/// streams are put there.
void open_standard_streams() {
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (::fcntl(fd, F_GETFD) < 0 && ::open("/dev/null", O_RDWR) < 0) {
      throw Error(ErrorCode::kSystem, fmt::format("open(/dev/null) failed: {}", std::strerror(errno)));
    }
  }
}

/// One job from its first process to its last.
class Job {
 public:
  Job(const LaunchOptions& options, std::string executable)
      : options_(options),
        grace_(options.grace.count() >= 0 ? options.grace
                                          : std::chrono::milliseconds(settings().timeout_ms()) + kReportTime),
        executable_(std::move(executable)) {}

  void start() {
    const bool has_readable_stdin = ::isatty(STDIN_FILENO) == 0;
    RankEnvironment environment{
        .rank = 0, .num_ranks = options_.num_ranks, .job = make_job_id(), .extra = options_.environment};
    ranks_.reserve(static_cast<std::size_t>(options_.num_ranks));
    for (int rank = 0; rank < options_.num_ranks; ++rank) {
      environment.rank = rank;
      Child& child = ranks_.emplace_back(ChildSpec{.executable = executable_,
                                                   .arguments = options_.command,
                                                   .environment = make_rank_environment(environment),
                                                   .reads_stdin = rank == 0 && has_readable_stdin,
                                                   .capture_output = options_.label_output,
                                                   .signal_mask = signals_.previous_mask()});
      ++num_running_;
      if (!options_.label_output) continue;
      const std::string label = fmt::format("[rank {}] ", rank);
      output_.add(child.take_stdout(), label, STDOUT_FILENO);
      output_.add(child.take_stderr(), label, STDERR_FILENO);
    }
  }

  int wait() {
    while (num_running_ > 0) {
      wait_for_events();
      while (const auto signal = signals_.take()) pass_on(*signal);
      output_.pump();
      collect_ended();
      if (deadline_ && Clock::now() >= *deadline_) escalate();
    }
    output_.finish();
    if (!blamed_ && first_failure_) blame(*first_failure_);
    if (blamed_) return blamed_->end.exit_code();
    return interrupted_by_ ? ChildEnd{.by_signal = true, .value = *interrupted_by_}.exit_code() : 0;
  }

 private:
  void wait_for_events() {
    waits_.clear();
    waits_.push_back({.fd = signals_.fd(), .events = POLLIN, .revents = 0});
    for (const Child& child : ranks_) {
      if (child.running()) waits_.push_back({.fd = child.pidfd(), .events = POLLIN, .revents = 0});
    }
    output_.append_waits(waits_);
    int timeout_ms = -1;
    if (deadline_) {
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(*deadline_ - Clock::now());
      // A day and more is waited for in several rounds.
      constexpr std::int64_t kMaxWaitMs = 24 * 60 * 60 * 1000;
      timeout_ms = static_cast<int>(std::clamp<std::int64_t>(left.count(), 0, kMaxWaitMs));
    }
    if (::poll(waits_.data(), waits_.size(), timeout_ms) < 0 && errno != EINTR) {
      throw Error(ErrorCode::kSystem, fmt::format("poll failed: {}", std::strerror(errno)));
    }
  }

  void pass_on(int signal) {
    const bool repeated = interrupted_by_.has_value();
    if (!repeated) interrupted_by_ = signal;
    signal_all(signal);
    // The first SIGINT leaves the ranks all the time they want to clean up; whoever insists means it.
    if (signal == SIGINT && !repeated) return;
    if (stage_ == Stage::kTerminated || stage_ == Stage::kKilled) return;
    if (signal != SIGTERM) signal_all(SIGTERM);
    enter(Stage::kTerminated, kKillDelay);
  }

  void collect_ended() {
    std::vector<Failure> failures;
    for (std::size_t i = 0; i < ranks_.size(); ++i) {
      Child& child = ranks_[i];
      const bool stopping = stage_ == Stage::kTerminated || stage_ == Stage::kKilled;
      const auto end = child.try_reap([stopping](const ChildEnd& how) { return stopping || how.failed(); });
      if (!end) continue;
      --num_running_;
      if (end->failed()) failures.push_back({.rank = static_cast<int>(i), .pid = child.pid(), .end = *end});
    }
    if (failures.empty()) return;
    // Of ranks seen at the same time, one killed by a signal cannot be the consequence of one that exited.
    std::stable_sort(failures.begin(), failures.end(),
                     [](const Failure& a, const Failure& b) { return a.end.by_signal > b.end.by_signal; });
    const bool asked_to_end = interrupted_by_ || stage_ == Stage::kTerminated || stage_ == Stage::kKilled;
    if (!asked_to_end) note(failures);
    if (stage_ == Stage::kRunning) enter(Stage::kGrace, grace_);
  }

  void note(const std::vector<Failure>& failures) {
    if (!first_failure_) first_failure_ = failures.front();
    for (const Failure& failure : failures) {
      const bool reports_other = !failure.end.by_signal && failure.end.value == options_.peer_lost_exit_code;
      if (!blamed_ && !reports_other) blame(failure);
    }
  }

  void blame(const Failure& failure) {
    blamed_ = failure;
    if (options_.ranks_explain_exits && !failure.end.by_signal) return;
    fmt::print(stderr, "epistle: rank {} (pid {}) {}\n", failure.rank, failure.pid, failure.end.describe());
  }

  void escalate() {
    if (stage_ == Stage::kGrace) {
      std::vector<int> left;
      for (std::size_t i = 0; i < ranks_.size(); ++i) {
        if (ranks_[i].running()) left.push_back(static_cast<int>(i));
      }
      log_warn(fmt::format("ranks {} still ran {} ms after the failure and are stopped", fmt::join(left, ", "),
                           grace_.count()));
      signal_all(SIGTERM);
      enter(Stage::kTerminated, kKillDelay);
    } else {
      signal_all(SIGKILL);
      stage_ = Stage::kKilled;
      deadline_.reset();
    }
  }

  void enter(Stage stage, std::chrono::milliseconds time) {
    stage_ = stage;
    deadline_ = Clock::now() + time;
  }

  void signal_all(int signal) {
    for (const Child& child : ranks_) child.signal_group(signal);
  }

  const LaunchOptions& options_;
  std::chrono::milliseconds grace_;
  std::string executable_;
  SignalInbox signals_;
  LabelledOutput output_;
  std::vector<Child> ranks_;
  std::vector<pollfd> waits_;
  int num_running_ = 0;
  Stage stage_ = Stage::kRunning;
  std::optional<Clock::time_point> deadline_;
  std::optional<Failure> first_failure_;
  std::optional<Failure> blamed_;
  std::optional<int> interrupted_by_;
};

}  // namespace

int launch_ranks(const LaunchOptions& options) {
  check_num_ranks(options.num_ranks);
  if (options.command.empty()) {
    throw Error(ErrorCode::kInvalidArgument, "no program to run; give a program and its arguments");
  }
  open_standard_streams();
  std::fflush(nullptr);  // what this process has to say comes before what the ranks say
  try {
    Job job(options, options.executable.empty() ? find_program(options.command[0]) : options.executable);
    job.start();
    return job.wait();
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kNotFound && error.code() != ErrorCode::kUnsupported) throw;
    fmt::print(stderr, "epistle: error: {}\n", error.what());
    return kExitCannotExecute;
  }
}

LaunchOptions relaunch_options(int num_ranks) {
  LaunchOptions options;
  options.num_ranks = num_ranks;
  options.executable = "/proc/self/exe";
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  const std::string text(std::istreambuf_iterator<char>(file), {});
  std::size_t begin = 0;
  for (std::size_t end = text.find('\0'); end != std::string::npos; end = text.find('\0', begin)) {
    options.command.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  if (options.command.empty()) {
    throw Error(ErrorCode::kSystem, "cannot read this program's arguments from /proc/self/cmdline; is /proc mounted?");
  }
  return options;
}

}  // namespace epistle
