#include "dispatch/host/engine/timeline.hpp"

namespace epistle::host {

std::vector<TimelineEvent>*& timeline_of_thread() noexcept {
  thread_local std::vector<TimelineEvent>* events = nullptr;
  return events;
}

}  // namespace epistle::host
