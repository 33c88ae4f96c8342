// Libraries that are loaded put handlers of their own on a program's signals: libpsm2, which comes with libfabric, one
// that calls exit(1) on SIGINT and SIGTERM, wherever the program is. What a signal does stays the program's.
#pragma once

#include <csignal>

namespace epistle {

/// While one lives libraries may change what signals do; when the last one of the process is gone, that is as it was
/// before the first. The program must not set handlers meanwhile. Signals that end a program wait so long, if no other
/// thread takes them.
class KeptSignals {
 public:
  KeptSignals();
  ~KeptSignals();
  KeptSignals(const KeptSignals&) = delete;
  KeptSignals& operator=(const KeptSignals&) = delete;

 private:
  sigset_t mask_ = {};
};

}  // namespace epistle
