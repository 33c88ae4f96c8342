#include "standard_streams.hpp"

#include <cerrno>
#include <csignal>

#include <fcntl.h>
#include <unistd.h>

#include "exit_codes.hpp"

namespace epistle::cli {
namespace {

// A handler, because exec would keep an ignored signal ignored.
void let_the_write_fail(int /*signal*/) {}

}  // namespace

void open_standard_streams() noexcept {
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (::fcntl(fd, F_GETFD) >= 0 || errno != EBADF) continue;
    // The lowest free number is taken, and those below are in use by now.
    const int opened = ::open("/dev/null", O_RDONLY);
    if (opened != fd) ::_exit(kExitSystem);
  }
}

void report_file_size_limit() noexcept {
  struct sigaction action {};
  action.sa_handler = let_the_write_fail;
  action.sa_flags = SA_RESTART;
  ::sigaction(SIGXFSZ, &action, nullptr);
}

}  // namespace epistle::cli
