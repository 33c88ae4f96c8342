#include "launch/launcher.hpp"

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <string_view>

#include <fcntl.h>
#include <unistd.h>

#include <fmt/format.h>

#include "epistle/error.hpp"

#include "core/whole_file.hpp"
#include "group/limits.hpp"
#include "launch/environment.hpp"
#include "launch/job.hpp"
#include "launch/keeper.hpp"
#include "launch/signals.hpp"

namespace epistle {
namespace {

/// Descriptors 0 to 2 must be taken: a pipe that got one of these numbers would be overwritten when a rank's own
/// streams are put there. Not to be written to: whoever writes to a closed stream is to get an error.
void open_standard_streams() {
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (::fcntl(fd, F_GETFD) < 0 && ::open("/dev/null", O_RDONLY) < 0) {
      throw Error(ErrorCode::kSystem, fmt::format("open(/dev/null) failed: {}", std::strerror(errno)));
    }
  }
}

void print_error(std::string_view message) {
  // Not fmt::print, which throws where standard error is closed.
  std::fputs(fmt::format("epistle: error: {}\n", message).c_str(), stderr);
}

}  // namespace

int launch_ranks(const LaunchOptions& options) {
  check_num_ranks(options.num_ranks);
  if (options.command.empty()) {
    throw Error(ErrorCode::kInvalidArgument, "no program to run; give a program and its arguments");
  }
  open_standard_streams();
  std::fflush(nullptr);  // what this process has to say comes before what the ranks say
  try {
    const std::string executable = options.executable.empty() ? find_program(options.command[0]) : options.executable;
    SignalInbox signals({SIGINT, SIGTERM, SIGHUP});
    Keeper keeper([&](Orders& orders) { return run_job(options, executable, signals.previous_mask(), orders); });
    const KeeperResult result = keeper.wait(signals);
    if (result.complaint.empty()) return result.exit_code;
    if (result.exit_code == 0) throw Error(ErrorCode::kSystem, result.complaint);
    print_error(result.complaint);
    return result.exit_code;
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kNotFound && error.code() != ErrorCode::kUnsupported) throw;
    print_error(error.what());
    return kExitCannotExecute;
  }
}

LaunchOptions relaunch_options(int num_ranks) {
  LaunchOptions options;
  options.num_ranks = num_ranks;
  options.executable = "/proc/self/exe";
  const std::string text = read_kernel_file("/proc/self/cmdline").value_or("");
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
