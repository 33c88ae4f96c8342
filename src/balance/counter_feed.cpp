#include "balance/counter_feed.hpp"

#include <fmt/format.h>

#include "core/reject.hpp"

namespace epistle::balance {

CounterFeed::CounterFeed(LoadWindow& window, std::int32_t layer, WorkPhase phase, std::span<const std::int64_t> counted)
    : window_(&window), layer_(layer), phase_(phase), last_(counted.begin(), counted.end()) {}

void CounterFeed::update(std::span<const std::int64_t> counted, LoadWindow::Clock::time_point now) {
  if (last_.empty()) last_.assign(counted.size(), 0);
  if (counted.size() != last_.size()) {
    reject(
        fmt::format("counts of {} experts, {} before; a feed belongs to one dispatcher", counted.size(), last_.size()));
  }
  std::vector<std::int64_t> added(counted.size());
  for (std::size_t expert = 0; expert < counted.size(); ++expert) {
    added[expert] = counted[expert] - last_[expert];
    if (added[expert] >= 0) continue;
    reject(fmt::format("expert {} has {} tokens, {} before; counts only grow, and a feed belongs to one dispatcher",
                       expert, counted[expert], last_[expert]));
  }
  window_->add(layer_, phase_, added, now);
  last_.assign(counted.begin(), counted.end());
}

}  // namespace epistle::balance
