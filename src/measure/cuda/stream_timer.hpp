// Times what the ranks put on their streams, as the streams see it.
#pragma once

#include <cstdint>
#include <vector>

#include <cuda_runtime_api.h>

#include "epistle/group.hpp"

namespace epistle {

/// The streams of all ranks are held back until a moment that all of them share, so that what a step enqueues is there
/// when its turn comes. A step runs twice and the second run counts: the first one brings the ranks together, as the
/// call before does in a model. A step that waits on the host shows that wait.
class StreamTimer {
 public:
  /// Both must outlive the timer.
  StreamTimer(Group& group, cudaStream_t stream);
  ~StreamTimer();
  StreamTimer(const StreamTimer&) = delete;
  StreamTimer& operator=(const StreamTimer&) = delete;

  /// Collective: `step` enqueues work, `wait` returns when the stream has done it. Returns the microseconds of the
  /// slowest rank, the same on all ranks.
  template <typename Step, typename Wait>
  double time(const Step& step, const Wait& wait) {
    begin();
    step();
    mark();
    step();
    end();
    wait();
    return slowest_us();
  }

 private:
  void begin();
  void mark();
  void end();
  [[nodiscard]] double slowest_us();

  Group& group_;
  cudaStream_t stream_;
  cudaEvent_t begin_ = nullptr;
  cudaEvent_t end_ = nullptr;
  std::vector<std::int64_t> ready_ns_;
  std::vector<double> times_us_;
};

}  // namespace epistle
