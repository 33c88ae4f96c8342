// Failing system calls: this program defines the libc functions that a process group uses, in front of libc's own. They
// pass every call on; in a process that asked for it they count, and the nth call of a kind fails as told.
#pragma once

#include <array>
#include <cstddef>

namespace epistle::testing {

enum class SystemCall {
  kSocket,
  kBind,
  kListen,
  kAccept,
  kConnect,
  kSend,  ///< send, sendto, sendmsg
  kReceive,
  kPoll,  ///< poll, ppoll, epoll_wait
  kShutdown,
  kGetsockopt,
  kSetsockopt,
  kDuplicate,  ///< dup, fcntl(F_DUPFD...)
  kLock,       ///< fcntl with record locks
  kSeal,       ///< fcntl(F_ADD_SEALS, F_GET_SEALS)
  kFcntl,      ///< every other fcntl
  kMemfdCreate,
  kFtruncate,
  kFallocate,
  kMmap,
  kFstat,
  kEpollCreate,
  kEpollCtl,
  kEventfd,
  kPidfd,  ///< syscall(SYS_pidfd_open), syscall(SYS_pidfd_getfd)
  kOpen,
  kRead,
  kWrite,
};

inline constexpr std::array<const char*, 27> kSystemCallNames = {
    "socket",     "bind",       "listen", "accept",    "connect", "send",  "receive", "poll",      "shutdown",
    "getsockopt", "setsockopt", "dup",    "lock",      "seal",    "fcntl", "memfd",   "ftruncate", "fallocate",
    "mmap",       "fstat",      "epoll",  "epoll_ctl", "eventfd", "pidfd", "open",    "read",      "write"};
inline constexpr std::size_t kNumSystemCalls = kSystemCallNames.size();

using CallCounts = std::array<int, kNumSystemCalls>;

enum class CallFault {
  kError,            ///< it fails with `error` and does nothing
  kErrorForever,     ///< and so does every later one
  kLoseDescriptors,  ///< receive only: the message arrives without the descriptors it carried (MSG_CTRUNC)
  kKillBefore,       ///< SIGKILL instead of the call
  kKillAfter,        ///< SIGKILL when the call has been made
  kStopBefore,       ///< SIGSTOP, and the call when the process is resumed
};

struct SystemCallFault {
  SystemCall call = SystemCall::kSocket;
  int nth = 0;  ///< counted from 1 since watch_system_calls(); 0 = none fails
  CallFault fault = CallFault::kError;
  int error = 0;
};

/// Starts to count the calls of this process from zero, and lets one of them fail.
void watch_system_calls(const SystemCallFault& fault = {});
/// Calls are passed on as if nothing had ever been watched; the counts stay.
void stop_watching() noexcept;

[[nodiscard]] CallCounts system_call_counts() noexcept;
[[nodiscard]] bool fault_was_hit() noexcept;
/// Whether a message of this process had gone out before the fault: without one it had nobody to tell of it.
[[nodiscard]] bool had_sent_before_fault() noexcept;

}  // namespace epistle::testing
