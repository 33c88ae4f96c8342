#include "balance/forecast.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numeric>

namespace epistle::balance {
namespace {

using Loads = std::vector<double>;

// In windows; 0 = for ever. Finer steps foretell no better than the noise of what they are chosen on.
constexpr double kHalfLives[] = {0.0, 16.0, 8.0, 4.0, 2.0};
// So many windows are seen before the first forecast.
constexpr std::size_t kMinSeen = 4;
// A forecast of nothing must not weigh without end.
constexpr double kLeastPart = 1e-4;

/// Parts of a whole; nothing where there is no load.
Loads parts_of(Loads loads) {
  const double sum = std::accumulate(loads.begin(), loads.end(), 0.0);
  for (double& load : loads) load = sum > 0.0 ? load / sum : 0.0;
  return loads;
}

/// Squared differences over what was foretold: as for counts, of which the larger ones vary more.
double error_of(const Loads& foretold, double sum_foretold, const Loads& came) {
  double error = 0.0;
  for (std::size_t expert = 0; expert < came.size(); ++expert) {
    const double part = sum_foretold > 0.0 ? foretold[expert] / sum_foretold : 0.0;
    error += (came[expert] - part) * (came[expert] - part) / std::max(part, kLeastPart);
  }
  return error;
}

/// What comes after each window: the mean of the next ones.
std::vector<Loads> following(const std::vector<Loads>& windows, std::size_t num_ahead) {
  std::vector<Loads> result(windows.size());
  for (std::size_t now = kMinSeen; now < windows.size(); ++now) {
    Loads sum(windows.front().size(), 0.0);
    for (std::size_t next = now; next < std::min(now + num_ahead, windows.size()); ++next) {
      for (std::size_t expert = 0; expert < sum.size(); ++expert) sum[expert] += windows[next][expert];
    }
    result[now] = parts_of(std::move(sum));
  }
  return result;
}

double total_error(const std::vector<Loads>& windows, const std::vector<Loads>& came, std::size_t num_ahead,
                   double half_life) {
  const double keep = half_life > 0.0 ? std::exp2(-1.0 / half_life) : 1.0;
  Loads seen(windows.front().size(), 0.0);
  double sum_seen = 0.0;
  double error = 0.0;
  for (std::size_t now = 0; now < windows.size(); ++now) {
    if (now >= kMinSeen) {
      const std::size_t num_came = std::min(num_ahead, windows.size() - now);
      error += error_of(seen, sum_seen, came[now]) * static_cast<double>(num_came);
    }
    sum_seen = 0.0;
    for (std::size_t expert = 0; expert < seen.size(); ++expert) {
      seen[expert] = seen[expert] * keep + windows[now][expert];
      sum_seen += seen[expert];
    }
  }
  return error;
}

}  // namespace

double choose_half_life(const std::vector<std::vector<double>>& windows, std::int32_t num_ahead) {
  if (windows.size() <= kMinSeen + 1 || num_ahead < 1) return 0.0;
  std::vector<Loads> parts;
  parts.reserve(windows.size());
  for (const Loads& window : windows) parts.push_back(parts_of(window));
  const auto ahead = static_cast<std::size_t>(num_ahead);
  const std::vector<Loads> came = following(parts, ahead);
  double best = 0.0;
  double least = std::numeric_limits<double>::infinity();
  for (const double half_life : kHalfLives) {
    const double error = total_error(parts, came, ahead, half_life);
    if (error >= least) continue;
    least = error;
    best = half_life;
  }
  return best;
}

}  // namespace epistle::balance
