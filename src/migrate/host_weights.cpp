#include "migrate/host_weights.hpp"

#include <cstring>

#include <sched.h>

namespace epistle::migrate {

void HostWeights::begin_thread() {
  if (!low_priority_) return;
  // Where the system refuses it, the thread runs as others do.
  const sched_param none{};
  (void)::sched_setscheduler(0, SCHED_IDLE, &none);
}

void HostWeights::copy(std::byte* destination, const std::byte* source, std::size_t num_bytes) {
  std::memcpy(destination, source, num_bytes);
}

}  // namespace epistle::migrate
