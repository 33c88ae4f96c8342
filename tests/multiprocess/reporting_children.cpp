#include "multiprocess/reporting_children.hpp"

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <new>
#include <stdexcept>
#include <thread>

#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

namespace epistle::testing {
namespace {

constexpr std::chrono::milliseconds kPollInterval{1};
constexpr int kForeignExceptionExit = 97;

[[noreturn]] void play_child(const ReportingChildren::Body& body, ChildReport& report) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  const auto start = std::chrono::steady_clock::now();
  try {
    body(report);
  } catch (const Error& error) {
    report.threw = true;
    report.code = error.code();
    report.peer_rank = error.context().peer_rank;
    report.phase = error.context().phase;
    report.missing_rows = error.context().missing_rows;
    std::strncpy(report.message, error.what(), sizeof(report.message) - 1);
  } catch (const std::exception& error) {
    std::cerr << "a child threw: " << error.what() << std::endl;
    ::_exit(kForeignExceptionExit);
  }
  report.took_ms =
      std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now() - start).count();
  report.has_shared_memory = !shared_memory_of_this_process().empty();
  report.returned = true;
  ::_exit(0);
}

}  // namespace

ReportingChildren::ReportingChildren(const std::vector<Body>& bodies) : reaped_(bodies.size(), false) {
  void* const shared =
      ::mmap(nullptr, bodies.size() * sizeof(ChildReport), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) throw std::runtime_error("mmap failed");
  reports_ = static_cast<ChildReport*>(shared);
  for (std::size_t idx = 0; idx < bodies.size(); ++idx) new (&reports_[idx]) ChildReport();
  for (std::size_t idx = 0; idx < bodies.size(); ++idx) {
    const pid_t pid = ::fork();
    if (pid < 0) throw std::runtime_error("fork failed");
    if (pid == 0) play_child(bodies[idx], reports_[idx]);
    pids_.push_back(pid);
  }
}

ReportingChildren::~ReportingChildren() {
  for (std::size_t idx = 0; idx < pids_.size(); ++idx) {
    if (reaped_[idx]) continue;
    ::kill(pids_[idx], SIGKILL);
    ::waitpid(pids_[idx], nullptr, 0);
  }
  ::munmap(reports_, reaped_.size() * sizeof(ChildReport));
}

bool ReportingChildren::poll_status(std::size_t idx, int options, int& status, std::chrono::milliseconds timeout) {
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  for (;;) {
    if (::waitpid(pids_[idx], &status, options | WNOHANG) == pids_[idx]) return true;
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(kPollInterval);
  }
}

int ReportingChildren::wait(std::size_t idx, std::chrono::milliseconds timeout) {
  int status = 0;
  if (!poll_status(idx, 0, status, timeout)) return -1;
  reaped_[idx] = true;
  return status;
}

bool ReportingChildren::wait_stopped(std::size_t idx, std::chrono::milliseconds timeout) {
  int status = 0;
  if (!poll_status(idx, WUNTRACED, status, timeout)) return false;
  if (!WIFSTOPPED(status)) reaped_[idx] = true;
  return WIFSTOPPED(status);
}

void ReportingChildren::send(std::size_t idx, int signal) const { ::kill(pids_[idx], signal); }

std::vector<std::string> shared_memory_of_this_process() {
  std::vector<std::string> found;
  const auto is_shared = [](const std::string& text) {
    return text.find("memfd:epistle") != std::string::npos || text.find("/dev/shm/") != std::string::npos;
  };
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    if (is_shared(line)) found.push_back(line);
  }
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code ignored;  // the iterator's own descriptor is gone by now
    const std::string target = std::filesystem::read_symlink(entry.path(), ignored).string();
    if (is_shared(target)) found.push_back(target);
  }
  return found;
}

std::vector<std::string> named_shared_memory() {
  std::vector<std::string> found;
  std::error_code ignored;  // without /dev/shm nothing can be left there
  for (const auto& entry : std::filesystem::directory_iterator("/dev/shm", ignored)) {
    const std::string name = entry.path().filename().string();
    if (name.find("epistle") != std::string::npos) found.push_back(name);
  }
  return found;
}

}  // namespace epistle::testing
