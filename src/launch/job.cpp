#include "launch/job.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include <poll.h>
#include <sys/resource.h>
#include <unistd.h>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "epistle/error.hpp"

#include "core/log.hpp"
#include "launch/child.hpp"
#include "launch/environment.hpp"
#include "launch/output.hpp"
#include "launch/signals.hpp"
#include "topology/process_tree.hpp"

namespace epistle {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

/// Between SIGTERM and SIGKILL.
constexpr std::chrono::seconds kKillDelay{2};
/// No signal tells that a process was left by its parent and came to this one; it is looked for this often.
constexpr milliseconds kAdoptionInterval{20};
/// A survivor that waits for a rank that ended notices at once; this long it may take to say so and exit. One that does
/// not notice waits for a rank that never joined.
constexpr std::chrono::seconds kFailureGrace{5};
/// For checkpoints; what Kubernetes and Slurm (KillWait) give.
constexpr std::chrono::seconds kInterruptGrace{30};

enum class Stage {
  kRunning,
  kGrace,       ///< a rank failed, or SIGINT was passed on; the others may end by themselves
  kTerminated,  ///< all were sent SIGTERM
  kKilled,      ///< all were sent SIGKILL
};

struct Failure {
  int rank = 0;
  pid_t pid = 0;
  ChildEnd end;
};

/// Output that finds no reader, or a full file, must be an error of a write, not the end of the keeper.
void block_signals_of_writes() {
  sigset_t signals;
  ::sigemptyset(&signals);
  for (const int signal : {SIGPIPE, SIGXFSZ, SIGTTOU}) ::sigaddset(&signals, signal);
  ::pthread_sigmask(SIG_BLOCK, &signals, nullptr);
}

/// Lets this process open as many files as it may; the previous limit is for the ranks.
rlimit raise_open_files() {
  rlimit previous{};
  if (::getrlimit(RLIMIT_NOFILE, &previous) != 0) {
    throw Error(ErrorCode::kSystem, fmt::format("getrlimit failed: {}", std::strerror(errno)));
  }
  rlimit raised = previous;
  raised.rlim_cur = raised.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &raised);  // where it is refused, the soft limit stays
  return previous;
}

class Job {
 public:
  Job(const LaunchOptions& options, std::string executable, const sigset_t& rank_mask, Orders& orders)
      : options_(options),
        executable_(std::move(executable)),
        rank_mask_(rank_mask),
        orders_(orders),
        environment_{.rank = 0, .num_ranks = options.num_ranks, .job = make_job_id(), .extra = options.environment} {
    ranks_.reserve(static_cast<std::size_t>(options.num_ranks));
  }

  KeeperResult run() {
    while (!is_over()) {
      if (starting()) start_next();
      wait_for_events();
      take_orders();
      collect_ended();
      output_.pump(has_children_ || starting());
      if (deadline_ && Clock::now() >= *deadline_) escalate();
      if (stage_ >= Stage::kTerminated) signal_adopted(stage_ == Stage::kKilled ? SIGKILL : SIGTERM);
    }
    return verdict();
  }

 private:
  [[nodiscard]] bool starting() const {
    const bool told_to_end = interrupted_by_ || stage_ >= Stage::kTerminated;
    return !told_to_end && ranks_.size() < static_cast<std::size_t>(options_.num_ranks);
  }

  [[nodiscard]] bool is_over() const { return given_up_ || (!starting() && !has_children_ && output_.done()); }

  void start_next() {
    const auto rank = static_cast<int>(ranks_.size());
    environment_.rank = rank;
    try {
      Child& child = ranks_.emplace_back(ChildSpec{.rank = rank,
                                                   .executable = executable_,
                                                   .arguments = options_.command,
                                                   .environment = make_rank_environment(environment_),
                                                   .reads_stdin = rank == 0 && has_readable_stdin_,
                                                   .capture_output = options_.label_output,
                                                   .signal_mask = rank_mask_,
                                                   .open_files = open_files_});
      ++num_running_;
      has_children_ = true;
      if (!options_.label_output) return;
      const std::string label = fmt::format("[rank {}] ", rank);
      output_.add(child.take_stdout(), label, STDOUT_FILENO);
      output_.add(child.take_stderr(), label, STDERR_FILENO);
    } catch (const Error& error) {
      start_error_ = error;
      kill_all();
    }
  }

  void wait_for_events() {
    waits_.clear();
    waits_.push_back({.fd = child_signals_.fd(), .events = POLLIN, .revents = 0});
    if (!orders_.launcher_gone()) waits_.push_back({.fd = orders_.fd(), .events = POLLIN, .revents = 0});
    output_.append_waits(waits_);
    int timeout_ms = -1;
    if (deadline_) {
      const auto left = std::chrono::ceil<milliseconds>(*deadline_ - Clock::now());
      // A day and more is waited for in several rounds.
      constexpr std::int64_t kMaxWaitMs = 24 * 60 * 60 * 1000;
      timeout_ms = static_cast<int>(std::clamp<std::int64_t>(left.count(), 0, kMaxWaitMs));
    }
    if (stage_ >= Stage::kTerminated) timeout_ms = std::min(timeout_ms, static_cast<int>(kAdoptionInterval.count()));
    if (starting()) timeout_ms = 0;
    if (::poll(waits_.data(), waits_.size(), timeout_ms) < 0 && errno != EINTR) {
      throw Error(ErrorCode::kSystem, fmt::format("poll failed: {}", std::strerror(errno)));
    }
  }

  void take_orders() {
    while (const auto signal = orders_.take()) pass_on(*signal);
    if (orders_.launcher_gone() && stage_ != Stage::kKilled) {
      kill_all();
      output_.abandon();
    }
  }

  void pass_on(int signal) {
    const bool repeated = interrupted_by_.has_value();
    if (!repeated) interrupted_by_ = signal;
    signal_all(signal);
    if (stage_ >= Stage::kTerminated) return;
    // The first SIGINT leaves the ranks time to clean up; whoever insists means it.
    if (signal == SIGINT && !repeated && num_running_ > 0) {
      if (stage_ == Stage::kRunning) enter(Stage::kGrace, grace_or(kInterruptGrace));
      return;
    }
    if (signal != SIGTERM) signal_all(SIGTERM);
    enter(Stage::kTerminated, kKillDelay);
  }

  void collect_ended() {
    while (child_signals_.take()) {
    }
    std::vector<Failure> failures;
    ChildrenState state = look_at_children();
    for (; state.ended; state = look_at_children()) {
      const auto [pid, end] = *state.ended;
      const auto child = std::find_if(ranks_.begin(), ranks_.end(),
                                      [pid = pid](const Child& rank) { return rank.running() && rank.pid() == pid; });
      if (child == ranks_.end()) {
        reap(pid);  // somebody whom a rank left behind
        told_to_end_.erase(pid);
        continue;
      }
      child->reap_ended(end.failed() || stage_ >= Stage::kTerminated);
      --num_running_;
      if (end.failed()) failures.push_back({.rank = static_cast<int>(child - ranks_.begin()), .pid = pid, .end = end});
    }
    has_children_ = state.any;
    if (!failures.empty()) note(failures);
    if (num_running_ == 0 && !starting()) all_ranks_ended();
  }

  void note(std::vector<Failure>& failures) {
    // Of ranks seen at the same time, one killed by a signal cannot be the consequence of one that exited.
    std::stable_sort(failures.begin(), failures.end(),
                     [](const Failure& a, const Failure& b) { return a.end.by_signal > b.end.by_signal; });
    if (!interrupted_by_ && stage_ < Stage::kTerminated) {
      if (!first_failure_) first_failure_ = failures.front();
      for (const Failure& failure : failures) {
        const bool reports_other = !failure.end.by_signal && failure.end.value == options_.peer_lost_exit_code;
        if (!blamed_ && !reports_other) blame(failure);
      }
    }
    if (stage_ == Stage::kRunning) enter(Stage::kGrace, grace_or(kFailureGrace));
  }

  void blame(const Failure& failure) {
    blamed_ = failure;
    if (options_.ranks_explain_exits && !failure.end.by_signal) return;
    output_.say(fmt::format("epistle: rank {} (pid {}) {}", failure.rank, failure.pid, failure.end.describe()));
  }

  void all_ranks_ended() {
    if (!blamed_ && first_failure_) blame(*first_failure_);
    if (has_children_) {
      // What they left behind is asked to end, too.
      if (stage_ < Stage::kTerminated) enter(Stage::kTerminated, kKillDelay);
    } else if (!interrupted_by_) {
      deadline_.reset();  // for a slow reader of the last lines there is no hurry
    }
  }

  void escalate() {
    if (stage_ == Stage::kGrace && has_children_) {
      if (num_running_ > 0) say_who_stays();
      signal_all(SIGTERM);
      enter(Stage::kTerminated, kKillDelay);
    } else if (stage_ < Stage::kKilled && has_children_) {
      kill_all();
    } else {
      give_up();
    }
  }

  void say_who_stays() {
    if (!log_enabled(LogLevel::kWarn)) return;
    std::vector<int> left;
    for (std::size_t i = 0; i < ranks_.size(); ++i) {
      if (ranks_[i].running()) left.push_back(static_cast<int>(i));
    }
    output_.say(fmt::format("epistle: {}: ranks {} still ran {} ms after {} and are stopped",
                            to_string(LogLevel::kWarn), fmt::join(left, ", "), grace_.count(),
                            interrupted_by_ ? "SIGINT" : "the failure"));
  }

  void give_up() {
    given_up_ = true;
    output_.abandon();
    if (!has_children_) return;
    std::vector<std::string> left;
    for (const pid_t pid : own_children()) left.push_back(fmt::format("{} ({})", pid, process_name(pid)));
    complaint_ = fmt::format(
        "these processes did not end after SIGKILL: {}; they run as another user or wait in the "
        "kernel, end them as root",
        left.empty() ? "not known, /proc is not mounted" : fmt::format("{}", fmt::join(left, ", ")));
  }

  KeeperResult verdict() {
    if (start_error_) throw Error(*start_error_);
    if (complaint_.empty()) complaint_ = output_.loss().value_or("");
    int exit_code = 0;
    if (blamed_) {
      exit_code = blamed_->end.exit_code();
    } else if (interrupted_by_) {
      exit_code = ChildEnd{.by_signal = true, .value = *interrupted_by_}.exit_code();
    }
    return {.exit_code = exit_code, .complaint = complaint_};
  }

  [[nodiscard]] milliseconds grace_or(milliseconds automatic) {
    grace_ = options_.grace.count() >= 0 ? options_.grace : automatic;
    return grace_;
  }

  void enter(Stage stage, milliseconds time) {
    stage_ = stage;
    deadline_ = Clock::now() + time;
  }

  void kill_all() {
    signal_all(SIGKILL);
    enter(Stage::kKilled, kEndTime);
  }

  void signal_all(int signal) {
    for (const Child& child : ranks_) child.signal_group(signal);
  }

  /// What ranks left behind: children of this process, so their numbers are theirs until it reaps them. Their own
  /// children come here when they have ended.
  void signal_adopted(int signal) {
    if (!has_children_) return;
    for (const pid_t pid : own_children()) {
      const bool is_rank = std::any_of(ranks_.begin(), ranks_.end(),
                                       [pid](const Child& rank) { return rank.running() && rank.pid() == pid; });
      if (is_rank) continue;
      if (signal == SIGKILL || told_to_end_.insert(pid).second) ::kill(pid, signal);
    }
  }

  const LaunchOptions& options_;
  const std::string executable_;
  const sigset_t rank_mask_;
  Orders& orders_;
  RankEnvironment environment_;
  const rlimit open_files_ = raise_open_files();
  const bool has_readable_stdin_ = ::isatty(STDIN_FILENO) == 0;
  SignalInbox child_signals_{SIGCHLD};
  LabelledOutput output_;
  std::vector<Child> ranks_;
  std::vector<pollfd> waits_;
  std::set<pid_t> told_to_end_;
  int num_running_ = 0;
  bool has_children_ = false;
  bool given_up_ = false;
  Stage stage_ = Stage::kRunning;
  milliseconds grace_{0};
  std::optional<Clock::time_point> deadline_;
  std::optional<Failure> first_failure_;
  std::optional<Failure> blamed_;
  std::optional<int> interrupted_by_;
  std::optional<Error> start_error_;
  std::string complaint_;
};

}  // namespace

KeeperResult run_job(const LaunchOptions& options, const std::string& executable, const sigset_t& rank_mask,
                     Orders& orders) {
  block_signals_of_writes();
  return Job(options, executable, rank_mask, orders).run();
}

}  // namespace epistle
