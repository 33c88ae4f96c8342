// Times one step of all ranks: from the first rank's start to the last rank's end.
#pragma once

#include <vector>

#include "epistle/group.hpp"

#include "measure/clock.hpp"

namespace epistle {

class SpanTimer {
 public:
  explicit SpanTimer(Group& group) : group_(&group), spans_(static_cast<std::size_t>(group.size())) {}

  /// Collective: runs `step` on all ranks at once; returns the microseconds it took, the same on all ranks.
  template <typename Step>
  double time(const Step& step) {
    group_->barrier();
    const Span own{steady_now_us(), (step(), steady_now_us())};
    group_->all_gather(&own, sizeof(own), spans_.data());
    Span all = own;
    for (int rank = 0; rank < group_->size(); ++rank) {
      if (group_->is_masked(rank)) continue;
      const Span& span = spans_[static_cast<std::size_t>(rank)];
      all.begin_us = span.begin_us < all.begin_us ? span.begin_us : all.begin_us;
      all.end_us = span.end_us > all.end_us ? span.end_us : all.end_us;
    }
    return all.end_us - all.begin_us;
  }

 private:
  struct Span {
    double begin_us;
    double end_us;
  };

  Group* group_;
  std::vector<Span> spans_;
};

}  // namespace epistle
