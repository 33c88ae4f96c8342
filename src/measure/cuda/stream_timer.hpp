// Times what the ranks put on their streams, as the streams see it.
#pragma once

#include <cuda_runtime_api.h>

#include "epistle/group.hpp"

#include "measure/bench_types.hpp"
#include "measure/cuda/stream_gate.hpp"
#include "measure/cuda/timed_event.hpp"
#include "measure/slowest_rank.hpp"

namespace epistle {

/// The streams of all ranks are held back until a moment that all of them share, so that what a step enqueues is there
/// when its turn comes. A step runs some times more than are counted: the first run brings the ranks together, as the
/// call before does in a model. The others follow each other with nothing in between, and their mean is the time: two
/// events around a single run would show almost 3 us that they show around nothing, too. A step that waits on the host
/// shows that wait.
class StreamTimer {
 public:
  /// `runs_per_sample`: runs of a step that one time is the mean of. Group and stream must outlive the timer.
  StreamTimer(Group& group, cudaStream_t stream, int runs_per_sample = kDefaultRunsPerSample)
      : stream_(stream), runs_per_sample_(runs_per_sample), gate_(group, stream), slowest_(group) {}

  /// Collective: `step` enqueues work, `wait` returns when the stream has done it. Returns the microseconds that one
  /// run took on the slowest rank, the same on all ranks.
  template <typename Step, typename Wait>
  double time(const Step& step, const Wait& wait) {
    gate_.hold(runs_per_sample_ + 1);
    step();
    begin_.record(stream_);
    for (int run = 0; run < runs_per_sample_; ++run) step();
    end_.record(stream_);
    wait();
    return slowest_.reduce(end_.us_since(begin_)) / runs_per_sample_;
  }

 private:
  cudaStream_t stream_;
  int runs_per_sample_;
  StreamGate gate_;
  SlowestRank slowest_;
  TimedEvent begin_;
  TimedEvent end_;
};

}  // namespace epistle
