// When the parts of a transfer were done: for pictures of what overlaps. Nothing is recorded unless a rank asks for it.
#pragma once

#include <chrono>
#include <cstdint>
#include <vector>

namespace epistle::host {

enum class TimelineWork : std::int32_t {
  kPack,     ///< a chunk is packed and put on its way
  kArrived,  ///< a chunk was seen to be here: no time
  kForward,  ///< a chunk is passed on inside the domain
  kOwn,      ///< rows that stay in the domain are passed on
  kReceive,  ///< rows are completed where they are received
};

struct TimelineEvent {
  TimelineWork work = TimelineWork::kPack;
  int domain = 0;          ///< to which, or from which
  std::int64_t chunk = 0;  ///< of the transfer to or from that domain
  std::chrono::steady_clock::time_point begin;
  std::chrono::steady_clock::time_point end;
};

/// Where the calls of this thread are recorded; null: nowhere. The events outlive the recording.
[[nodiscard]] std::vector<TimelineEvent>*& timeline_of_thread() noexcept;

/// Records the time from here to the end of its scope.
class TimelineSpan {
 public:
  TimelineSpan(TimelineWork work, int domain, std::int64_t chunk)
      : events_(timeline_of_thread()),
        event_{.work = work, .domain = domain, .chunk = chunk, .begin = begin(), .end = {}} {}
  ~TimelineSpan() {
    if (events_ == nullptr) return;
    event_.end = std::chrono::steady_clock::now();
    events_->push_back(event_);
  }
  TimelineSpan(const TimelineSpan&) = delete;
  TimelineSpan& operator=(const TimelineSpan&) = delete;

 private:
  [[nodiscard]] std::chrono::steady_clock::time_point begin() const noexcept {
    return events_ != nullptr ? std::chrono::steady_clock::now() : std::chrono::steady_clock::time_point();
  }

  std::vector<TimelineEvent>* events_;
  TimelineEvent event_;
};

}  // namespace epistle::host
