#include "core/kept_signals.hpp"

#include <array>
#include <csignal>
#include <cstddef>
#include <mutex>

namespace epistle {
namespace {

constexpr std::array kSignals = {SIGHUP, SIGINT, SIGQUIT, SIGILL, SIGABRT, SIGBUS, SIGFPE, SIGSEGV, SIGTERM};

struct Kept {
  std::mutex mutex;
  int keepers = 0;
  std::array<struct sigaction, kSignals.size()> actions = {};
};

Kept& kept() {
  static Kept instance;
  return instance;
}

}  // namespace

KeptSignals::KeptSignals() {
  sigset_t endings;
  sigemptyset(&endings);
  for (const int signal : {SIGHUP, SIGINT, SIGQUIT, SIGTERM}) sigaddset(&endings, signal);
  ::pthread_sigmask(SIG_BLOCK, &endings, &mask_);
  Kept& all = kept();
  const std::lock_guard lock(all.mutex);
  if (all.keepers++ > 0) return;
  for (std::size_t idx = 0; idx < kSignals.size(); ++idx) ::sigaction(kSignals[idx], nullptr, &all.actions[idx]);
}

KeptSignals::~KeptSignals() {
  {
    Kept& all = kept();
    const std::lock_guard lock(all.mutex);
    --all.keepers;
    for (std::size_t idx = 0; all.keepers == 0 && idx < kSignals.size(); ++idx)
      ::sigaction(kSignals[idx], &all.actions[idx], nullptr);
  }
  ::pthread_sigmask(SIG_SETMASK, &mask_, nullptr);
}

}  // namespace epistle
