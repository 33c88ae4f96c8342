#include "cost/group_limit.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <map>
#include <mutex>
#include <numeric>
#include <tuple>

#include "routing/philox.hpp"

namespace epistle {
namespace {

// Distinct groups of DeepSeek-V3 have a deviation of 0.14, their mean one of 0.001.
constexpr std::uint32_t kNumTokens = 16384;
constexpr std::uint64_t kSeed = 20261127;

/// Scores of a group in descending order, drawn as they are asked for: the largest of n uniform numbers below `top` is
/// top * u^(1/n).
class FallingScores {
 public:
  void reset(std::int32_t num_scores) {
    num_left_ = num_scores;
    score_ = 1.0;
  }
  /// The next lower score; below all others where there is none.
  double next(PhiloxStream& random) {
    if (num_left_ == 0) return -1.0;
    constexpr double kWords = 4294967296.0;
    const double uniform = (random.next_u32() + 0.5) / kWords;
    score_ *= std::pow(uniform, 1.0 / num_left_);
    --num_left_;
    return score_;
  }

 private:
  std::int32_t num_left_ = 0;
  double score_ = 1.0;
};

struct DrawnGroup {
  FallingScores scores;
  double best = 0.0;
  double second = 0.0;
  double head = 0.0;  ///< the best score that is not yet picked
  int picks = 0;
};

void draw_token(const GroupRouter& router, std::uint32_t token, std::vector<DrawnGroup>& groups) {
  PhiloxStream random(kSeed, {.stream = RandomStream::kScores, .rank = 0, .token = token});
  for (DrawnGroup& group : groups) {
    group.scores.reset(router.experts_per_group);
    group.best = group.scores.next(random);
    group.second = group.scores.next(random);
    group.head = group.best;
    group.picks = 0;
  }
  const auto chosen = groups.begin() + router.limit.groups_per_token;
  std::partial_sort(groups.begin(), chosen, groups.end(), [](const DrawnGroup& a, const DrawnGroup& b) {
    return a.best + std::max(a.second, 0.0) > b.best + std::max(b.second, 0.0);
  });
  for (std::int32_t pick = 0; pick < router.top_k; ++pick) {
    const auto best = std::max_element(groups.begin(), chosen,
                                       [](const DrawnGroup& a, const DrawnGroup& b) { return a.head < b.head; });
    ++best->picks;
    best->head = best->picks == 1 ? best->second : best->scores.next(random);
  }
}

GroupPicks draw(const GroupRouter& router) {
  GroupPicks picks;
  picks.groups_by_picks.assign(static_cast<std::size_t>(router.top_k) + 1, 0.0);
  picks.used_groups.assign(static_cast<std::size_t>(router.limit.groups_per_token) + 1, 0.0);
  std::vector<DrawnGroup> groups(static_cast<std::size_t>(router.limit.num_groups));
  for (std::uint32_t token = 0; token < kNumTokens; ++token) {
    draw_token(router, token, groups);
    std::size_t num_used = 0;
    for (std::int32_t idx = 0; idx < router.limit.groups_per_token; ++idx) {
      const auto count = static_cast<std::size_t>(groups[static_cast<std::size_t>(idx)].picks);
      picks.groups_by_picks[count] += 1.0 / kNumTokens;
      num_used += count > 0 ? 1 : 0;
    }
    picks.used_groups[num_used] += 1.0 / kNumTokens;
  }
  return picks;
}

}  // namespace

const GroupPicks& draw_group_picks(const GroupRouter& router) {
  using Key = std::tuple<std::int32_t, std::int32_t, std::int32_t, std::int32_t>;
  static std::mutex mutex;
  static std::map<Key, GroupPicks> drawn;  // its nodes stay where they are
  const Key key{router.experts_per_group, router.top_k, router.limit.num_groups, router.limit.groups_per_token};
  const std::scoped_lock lock(mutex);
  const auto found = drawn.find(key);
  return found != drawn.end() ? found->second : drawn.emplace(key, draw(router)).first->second;
}

}  // namespace epistle
