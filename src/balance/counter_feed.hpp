// From what dispatch counts (Dispatcher::expert_tokens()) to a load window: what came since the last look.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "balance/load_window.hpp"

namespace epistle::balance {

/// Feeds one layer and phase of a window with the counts of one dispatcher. Not for several threads at once; the window
/// is.
class CounterFeed {
 public:
  /// The window outlives the feed. `counted`: what the counts stand at, if they have begun elsewhere.
  CounterFeed(LoadWindow& window, std::int32_t layer, WorkPhase phase, std::span<const std::int64_t> counted = {});

  /// `counted`: tokens of every expert since the beginning. Throws kInvalidArgument where there are other experts than
  /// before, or fewer tokens: those are counts of another dispatcher.
  void update(std::span<const std::int64_t> counted, LoadWindow::Clock::time_point now = LoadWindow::Clock::now());

 private:
  LoadWindow* window_;
  std::int32_t layer_;
  WorkPhase phase_;
  std::vector<std::int64_t> last_;
};

}  // namespace epistle::balance
