#include "multiprocess/fault.hpp"

#include <csignal>
#include <stdexcept>

#include <sys/mman.h>
#include <unistd.h>

namespace epistle::testing {
namespace {

// For the signal handler, which has no other way to know.
std::byte* faulting_begin = nullptr;
std::size_t faulting_bytes = 0;
Fault faulting_fault = Fault::kKill;

void on_access(int signal, siginfo_t* info, void* /*context*/) {
  const auto* const address = static_cast<const std::byte*>(info->si_addr);
  if (address < faulting_begin || address >= faulting_begin + faulting_bytes) {
    ::signal(signal, SIG_DFL);  // an error of the program: let it happen again, and end it
    return;
  }
  ::mprotect(faulting_begin, faulting_bytes, PROT_READ | PROT_WRITE);
  fail_now(faulting_fault);
}

}  // namespace

void fail_now(Fault fault) {
  switch (fault) {
    case Fault::kKill:
      ::raise(SIGKILL);
      break;
    case Fault::kStop:
      ::raise(SIGSTOP);
      break;
    case Fault::kExit:
      ::_exit(0);
  }
}

FaultingBuffer::FaultingBuffer(std::size_t num_bytes, Fault fault) {
  const auto page_bytes = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  faulting_bytes = (num_bytes / page_bytes + 1) * page_bytes;
  void* const memory = ::mmap(nullptr, faulting_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::runtime_error("mmap failed");
  data_ = static_cast<std::byte*>(memory);
  faulting_begin = data_;
  faulting_fault = fault;
  struct sigaction action {};
  action.sa_sigaction = on_access;
  action.sa_flags = SA_SIGINFO;
  ::sigaction(SIGSEGV, &action, nullptr);
}

FaultingBuffer::~FaultingBuffer() {
  ::signal(SIGSEGV, SIG_DFL);
  ::munmap(data_, faulting_bytes);
}

}  // namespace epistle::testing
