#include "faults/system_calls.hpp"

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdarg>
#include <cstdlib>
#include <cstring>

#include <dlfcn.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace epistle::testing {
namespace {

// Of this process only: set before the ranks' threads exist, if any, and counted by all of them.
SystemCallFault watched;
std::atomic<bool> is_watching{false};
std::atomic<bool> was_hit{false};
std::atomic<bool> has_sent{false};
std::atomic<bool> sent_before_fault{false};
std::array<std::atomic<int>, kNumSystemCalls> counts{};

/// The function of that name which this program's own one hides.
template <typename Function>
Function* hidden_function(const char* name) {
  void* const found = ::dlsym(RTLD_NEXT, name);
  if (found == nullptr) std::abort();  // no such function, although the headers have it
  return reinterpret_cast<Function*>(found);
}

enum class Verdict { kPass, kFail, kKillAfter, kLoseDescriptors };

Verdict judge_call(SystemCall call) {
  if (!is_watching.load(std::memory_order_relaxed)) return Verdict::kPass;
  const int nth = counts[static_cast<std::size_t>(call)].fetch_add(1, std::memory_order_relaxed) + 1;
  if (watched.nth == 0 || call != watched.call || nth < watched.nth) return Verdict::kPass;
  if (nth > watched.nth) return watched.fault == CallFault::kErrorForever ? Verdict::kFail : Verdict::kPass;
  was_hit = true;
  sent_before_fault = has_sent.load();
  switch (watched.fault) {
    case CallFault::kKillBefore:
      ::raise(SIGKILL);
      break;
    case CallFault::kStopBefore:
      ::raise(SIGSTOP);
      return Verdict::kPass;
    case CallFault::kKillAfter:
      return Verdict::kKillAfter;
    case CallFault::kLoseDescriptors:
      return Verdict::kLoseDescriptors;
    default:
      break;
  }
  return Verdict::kFail;
}

template <typename Result, typename Real>
Result intercept(SystemCall call, Result failure, const Real& real) {
  const Verdict verdict = judge_call(call);
  if (verdict == Verdict::kFail) {
    errno = watched.error;
    return failure;
  }
  const Result result = real();
  if (verdict == Verdict::kKillAfter) ::raise(SIGKILL);
  if (call == SystemCall::kSend && result != failure) has_sent = true;
  return result;
}

/// What the kernel does when the receiver has no room for the descriptors of a message.
void lose_descriptors(msghdr* message) {
  for (cmsghdr* part = CMSG_FIRSTHDR(message); part != nullptr; part = CMSG_NXTHDR(message, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t num_bytes = part->cmsg_len - CMSG_LEN(0);
    for (std::size_t offset = 0; offset + sizeof(int) <= num_bytes; offset += sizeof(int)) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(part) + offset, sizeof(int));
      ::close(fd);
    }
    message->msg_flags |= MSG_CTRUNC;
  }
  message->msg_controllen = 0;
}

SystemCall kind_of_fcntl(int command) {
  switch (command) {
    case F_DUPFD:
    case F_DUPFD_CLOEXEC:
      return SystemCall::kDuplicate;
    case F_SETLK:
    case F_SETLKW:
    case F_GETLK:
    case F_OFD_SETLK:
    case F_OFD_SETLKW:
    case F_OFD_GETLK:
      return SystemCall::kLock;
    case F_ADD_SEALS:
    case F_GET_SEALS:
      return SystemCall::kSeal;
    default:
      return SystemCall::kFcntl;
  }
}

}  // namespace

void watch_system_calls(const SystemCallFault& fault) {
  is_watching = false;
  watched = fault;
  for (auto& count : counts) count = 0;
  was_hit = false;
  has_sent = false;
  sent_before_fault = false;
  is_watching = true;
}

void stop_watching() noexcept { is_watching = false; }

CallCounts system_call_counts() noexcept {
  CallCounts result{};
  for (std::size_t call = 0; call < kNumSystemCalls; ++call) result[call] = counts[call].load();
  return result;
}

bool fault_was_hit() noexcept { return was_hit; }
bool had_sent_before_fault() noexcept { return sent_before_fault; }

}  // namespace epistle::testing

// ---- The functions in front of libc's -------------------------------------------------------------------------------

using epistle::testing::hidden_function;
using epistle::testing::intercept;
using epistle::testing::SystemCall;

extern "C" {

int socket(int domain, int type, int protocol) noexcept {
  static auto* const real = hidden_function<int(int, int, int)>("socket");
  return intercept(SystemCall::kSocket, -1, [&] { return real(domain, type, protocol); });
}

int bind(int fd, const sockaddr* address, socklen_t size) noexcept {
  static auto* const real = hidden_function<int(int, const sockaddr*, socklen_t)>("bind");
  return intercept(SystemCall::kBind, -1, [&] { return real(fd, address, size); });
}

int listen(int fd, int backlog) noexcept {
  static auto* const real = hidden_function<int(int, int)>("listen");
  return intercept(SystemCall::kListen, -1, [&] { return real(fd, backlog); });
}

int accept4(int fd, sockaddr* address, socklen_t* size, int flags) {
  static auto* const real = hidden_function<int(int, sockaddr*, socklen_t*, int)>("accept4");
  return intercept(SystemCall::kAccept, -1, [&] { return real(fd, address, size, flags); });
}

int accept(int fd, sockaddr* address, socklen_t* size) { return accept4(fd, address, size, 0); }

int connect(int fd, const sockaddr* address, socklen_t size) {
  static auto* const real = hidden_function<int(int, const sockaddr*, socklen_t)>("connect");
  return intercept(SystemCall::kConnect, -1, [&] { return real(fd, address, size); });
}

ssize_t sendmsg(int fd, const msghdr* message, int flags) {
  static auto* const real = hidden_function<ssize_t(int, const msghdr*, int)>("sendmsg");
  return intercept(SystemCall::kSend, ssize_t{-1}, [&] { return real(fd, message, flags); });
}

ssize_t sendto(int fd, const void* data, size_t size, int flags, const sockaddr* address, socklen_t address_size) {
  static auto* const real =
      hidden_function<ssize_t(int, const void*, size_t, int, const sockaddr*, socklen_t)>("sendto");
  return intercept(SystemCall::kSend, ssize_t{-1}, [&] { return real(fd, data, size, flags, address, address_size); });
}

ssize_t send(int fd, const void* data, size_t size, int flags) { return sendto(fd, data, size, flags, nullptr, 0); }

ssize_t recvmsg(int fd, msghdr* message, int flags) {
  static auto* const real = hidden_function<ssize_t(int, msghdr*, int)>("recvmsg");
  const auto verdict = epistle::testing::judge_call(SystemCall::kReceive);
  if (verdict == epistle::testing::Verdict::kFail) {
    errno = epistle::testing::watched.error;
    return -1;
  }
  const ssize_t received = real(fd, message, flags);
  if (verdict == epistle::testing::Verdict::kKillAfter) ::raise(SIGKILL);
  if (verdict == epistle::testing::Verdict::kLoseDescriptors && received >= 0) {
    epistle::testing::lose_descriptors(message);
  }
  return received;
}

ssize_t recvfrom(int fd, void* data, size_t size, int flags, sockaddr* address, socklen_t* address_size) {
  static auto* const real = hidden_function<ssize_t(int, void*, size_t, int, sockaddr*, socklen_t*)>("recvfrom");
  return intercept(SystemCall::kReceive, ssize_t{-1},
                   [&] { return real(fd, data, size, flags, address, address_size); });
}

ssize_t recv(int fd, void* data, size_t size, int flags) { return recvfrom(fd, data, size, flags, nullptr, nullptr); }

int poll(pollfd* entries, nfds_t num_entries, int timeout_ms) {
  static auto* const real = hidden_function<int(pollfd*, nfds_t, int)>("poll");
  return intercept(SystemCall::kPoll, -1, [&] { return real(entries, num_entries, timeout_ms); });
}

int ppoll(pollfd* entries, nfds_t num_entries, const timespec* timeout, const sigset_t* mask) {
  static auto* const real = hidden_function<int(pollfd*, nfds_t, const timespec*, const sigset_t*)>("ppoll");
  return intercept(SystemCall::kPoll, -1, [&] { return real(entries, num_entries, timeout, mask); });
}

int epoll_wait(int fd, epoll_event* events, int max_events, int timeout_ms) {
  static auto* const real = hidden_function<int(int, epoll_event*, int, int)>("epoll_wait");
  return intercept(SystemCall::kPoll, -1, [&] { return real(fd, events, max_events, timeout_ms); });
}

int epoll_create1(int flags) noexcept {
  static auto* const real = hidden_function<int(int)>("epoll_create1");
  return intercept(SystemCall::kEpollCreate, -1, [&] { return real(flags); });
}

int epoll_ctl(int fd, int operation, int target, epoll_event* event) noexcept {
  static auto* const real = hidden_function<int(int, int, int, epoll_event*)>("epoll_ctl");
  return intercept(SystemCall::kEpollCtl, -1, [&] { return real(fd, operation, target, event); });
}

int eventfd(unsigned int count, int flags) noexcept {
  static auto* const real = hidden_function<int(unsigned int, int)>("eventfd");
  return intercept(SystemCall::kEventfd, -1, [&] { return real(count, flags); });
}

int shutdown(int fd, int how) noexcept {
  static auto* const real = hidden_function<int(int, int)>("shutdown");
  return intercept(SystemCall::kShutdown, -1, [&] { return real(fd, how); });
}

int getsockopt(int fd, int level, int name, void* value, socklen_t* size) noexcept {
  static auto* const real = hidden_function<int(int, int, int, void*, socklen_t*)>("getsockopt");
  return intercept(SystemCall::kGetsockopt, -1, [&] { return real(fd, level, name, value, size); });
}

int setsockopt(int fd, int level, int name, const void* value, socklen_t size) noexcept {
  static auto* const real = hidden_function<int(int, int, int, const void*, socklen_t)>("setsockopt");
  return intercept(SystemCall::kSetsockopt, -1, [&] { return real(fd, level, name, value, size); });
}

int fcntl(int fd, int command, ...) {
  static auto* const real = hidden_function<int(int, int, ...)>("fcntl");
  va_list arguments;
  va_start(arguments, command);
  void* const argument = va_arg(arguments, void*);  // an int comes in the same register
  va_end(arguments);
  return intercept(epistle::testing::kind_of_fcntl(command), -1, [&] { return real(fd, command, argument); });
}

int dup(int fd) noexcept {
  static auto* const real = hidden_function<int(int)>("dup");
  return intercept(SystemCall::kDuplicate, -1, [&] { return real(fd); });
}

int dup3(int fd, int target, int flags) noexcept {
  static auto* const real = hidden_function<int(int, int, int)>("dup3");
  return intercept(SystemCall::kDuplicate, -1, [&] { return real(fd, target, flags); });
}

int memfd_create(const char* name, unsigned int flags) noexcept {
  static auto* const real = hidden_function<int(const char*, unsigned int)>("memfd_create");
  return intercept(SystemCall::kMemfdCreate, -1, [&] { return real(name, flags); });
}

int ftruncate(int fd, off_t size) noexcept {
  static auto* const real = hidden_function<int(int, off_t)>("ftruncate");
  return intercept(SystemCall::kFtruncate, -1, [&] { return real(fd, size); });
}

int fallocate(int fd, int mode, off_t offset, off_t size) {
  static auto* const real = hidden_function<int(int, int, off_t, off_t)>("fallocate");
  return intercept(SystemCall::kFallocate, -1, [&] { return real(fd, mode, offset, size); });
}

void* mmap(void* address, size_t size, int protection, int flags, int fd, off_t offset) noexcept {
  static auto* const real = hidden_function<void*(void*, size_t, int, int, int, off_t)>("mmap");
  return intercept(SystemCall::kMmap, static_cast<void*>(MAP_FAILED),
                   [&] { return real(address, size, protection, flags, fd, offset); });
}

int fstat(int fd, struct stat* status) noexcept {
  static auto* const real = hidden_function<int(int, struct stat*)>("fstat");
  return intercept(SystemCall::kFstat, -1, [&] { return real(fd, status); });
}

int open(const char* path, int flags, ...) {
  static auto* const real = hidden_function<int(const char*, int, ...)>("open");
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = (flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(arguments, mode_t) : 0;
  va_end(arguments);
  return intercept(SystemCall::kOpen, -1, [&] { return real(path, flags, mode); });
}

ssize_t read(int fd, void* data, size_t size) {
  static auto* const real = hidden_function<ssize_t(int, void*, size_t)>("read");
  return intercept(SystemCall::kRead, ssize_t{-1}, [&] { return real(fd, data, size); });
}

ssize_t write(int fd, const void* data, size_t size) {
  static auto* const real = hidden_function<ssize_t(int, const void*, size_t)>("write");
  return intercept(SystemCall::kWrite, ssize_t{-1}, [&] { return real(fd, data, size); });
}

long syscall(long number, ...) noexcept {
  static auto* const real = hidden_function<long(long, ...)>("syscall");
  constexpr int kMaxArguments = 6;
  long values[kMaxArguments] = {};
  va_list arguments;
  va_start(arguments, number);
  for (long& value : values) value = va_arg(arguments, long);
  va_end(arguments);
  const auto pass = [&] { return real(number, values[0], values[1], values[2], values[3], values[4], values[5]); };
  const bool is_pidfd = number == SYS_pidfd_open || number == SYS_pidfd_getfd;
  return is_pidfd ? intercept(SystemCall::kPidfd, -1L, pass) : pass();
}

}  // extern "C"
