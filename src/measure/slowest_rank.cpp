#include "measure/slowest_rank.hpp"

#include <algorithm>

namespace epistle {

SlowestRank::SlowestRank(Group& group, std::size_t max_samples)
    : group_(group), all_(static_cast<std::size_t>(group.size()) * max_samples) {}

void SlowestRank::reduce(std::span<double> samples) {
  group_.all_gather(samples.data(), samples.size_bytes(), all_.data());
  for (int rank = 0; rank < group_.size(); ++rank) {
    const double* const of_rank = all_.data() + static_cast<std::size_t>(rank) * samples.size();
    for (std::size_t idx = 0; idx < samples.size(); ++idx) samples[idx] = std::max(samples[idx], of_rank[idx]);
  }
}

}  // namespace epistle
