// What signals do is the program's, whatever it loads.
#include "core/kept_signals.hpp"

#include <array>
#include <csignal>
#include <cstddef>

#include <gtest/gtest.h>

#include "core/loaded_library.hpp"
#include "fabric/fabric.hpp"

namespace epistle::test {
namespace {

constexpr std::array kTried = {SIGINT, SIGTERM, SIGHUP, SIGSEGV, SIGBUS, SIGABRT};

using Handlers = std::array<void*, kTried.size()>;

Handlers signal_handlers() {
  Handlers handlers = {};
  for (std::size_t idx = 0; idx < kTried.size(); ++idx) {
    struct sigaction action = {};
    ::sigaction(kTried[idx], nullptr, &action);
    handlers[idx] = reinterpret_cast<void*>(action.sa_handler);
  }
  return handlers;
}

void other_handler(int /*signal*/) {}

TEST(KeptSignals, WhatIsSetMeanwhileIsTakenBack) {
  const Handlers before = signal_handlers();
  {
    const KeptSignals outer;
    for (const int signal : kTried) ::signal(signal, other_handler);
    { const KeptSignals inner; }
    EXPECT_NE(signal_handlers(), before);
  }
  EXPECT_EQ(signal_handlers(), before);
}

TEST(KeptSignals, LoadingAFabricLibraryChangesNone) {
  const Handlers before = signal_handlers();
  static_cast<void>(describe_fabric_library());
  EXPECT_EQ(signal_handlers(), before);
  // Which has such a handler, where it is installed.
  const LoadedLibrary library("libpsm2.so.2");
  EXPECT_EQ(signal_handlers(), before);
}

}  // namespace
}  // namespace epistle::test
