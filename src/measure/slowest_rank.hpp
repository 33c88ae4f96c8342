// Samples of all ranks as one: what counts is the rank that took longest, sample by sample.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "epistle/group.hpp"

namespace epistle {

class SlowestRank {
 public:
  /// Keeps a reference to `group`. `max_samples`: most that one call takes.
  explicit SlowestRank(Group& group, std::size_t max_samples = 1);

  /// Collective, with equally many samples on all ranks: each becomes the largest that a rank has given in its place.
  void reduce(std::span<double> samples);
  [[nodiscard]] double reduce(double sample) {
    reduce(std::span<double>(&sample, 1));
    return sample;
  }

 private:
  Group& group_;
  std::vector<double> all_;  ///< [num_ranks, number of samples]
};

}  // namespace epistle
