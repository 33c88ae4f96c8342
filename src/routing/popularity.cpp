#include "routing/popularity.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <utility>

#include "routing/reproducible_math.hpp"

namespace epistle {
namespace {

// A draw that hits an expert already taken is repeated this often; then the rest is searched one by one. Both ways have
// the same distribution: the first is fast when little popularity is taken, the second is bounded when nearly all is.
constexpr int kMaxRepeatedDraws = 8;

/// `share` of the most popular expert's popularity, in [0, 1]. No expert is impossible, so that any top_k can be drawn.
std::uint64_t quantise(double share) {
  const double scaled = std::floor(share * static_cast<double>(kTopPopularity) + 0.5);
  return std::max<std::uint64_t>(1, static_cast<std::uint64_t>(scaled));
}

}  // namespace

std::vector<std::uint64_t> zipf_popularity(std::int32_t num_experts, double exponent, std::uint64_t seed) {
  std::vector<std::size_t> expert_at_place(static_cast<std::size_t>(num_experts));
  std::iota(expert_at_place.begin(), expert_at_place.end(), std::size_t{0});
  PhiloxStream random(seed, {.stream = RandomStream::kShuffle});
  for (std::size_t end = expert_at_place.size(); end > 1; --end) {
    std::swap(expert_at_place[end - 1], expert_at_place[random.below(end)]);
  }

  std::vector<std::uint64_t> popularity(expert_at_place.size());
  for (std::size_t place_idx = 0; place_idx < expert_at_place.size(); ++place_idx) {
    const double log_place = reproducible_log(static_cast<double>(place_idx + 1));
    popularity[expert_at_place[place_idx]] = quantise(reproducible_exp_of_nonpositive(-exponent * log_place));
  }
  return popularity;
}

std::vector<std::uint64_t> lognormal_popularity(std::int32_t num_experts, double sigma, std::uint64_t seed) {
  std::vector<double> normals(static_cast<std::size_t>(num_experts));
  for (std::size_t expert = 0; expert < normals.size(); ++expert) {
    PhiloxStream random(seed,
                        {.stream = RandomStream::kPopularity, .rank = 0, .token = static_cast<std::uint32_t>(expert)});
    normals[expert] = draw_standard_normal(random);
  }

  // Relative to the most popular expert, so that no sigma overflows.
  const double top = *std::max_element(normals.begin(), normals.end());
  std::vector<std::uint64_t> popularity(normals.size());
  std::transform(normals.begin(), normals.end(), popularity.begin(), [sigma, top](double normal) {
    return quantise(reproducible_exp_of_nonpositive(sigma * (normal - top)));
  });
  return popularity;
}

PopularitySampler::PopularitySampler(std::vector<std::uint64_t> popularity)
    : popularity_(std::move(popularity)), cumulative_(popularity_.size()), taken_(popularity_.size(), 0) {
  std::inclusive_scan(popularity_.begin(), popularity_.end(), cumulative_.begin());
}

void PopularitySampler::draw_distinct(PhiloxStream& random, std::span<std::int32_t> experts) {
  std::uint64_t taken_popularity = 0;
  for (std::int32_t& expert : experts) {
    expert = draw_one(random, taken_popularity);
    taken_[static_cast<std::size_t>(expert)] = 1;
    taken_popularity += popularity_[static_cast<std::size_t>(expert)];
  }
  for (const std::int32_t expert : experts) taken_[static_cast<std::size_t>(expert)] = 0;
}

std::int32_t PopularitySampler::draw_one(PhiloxStream& random, std::uint64_t taken_popularity) const {
  const std::uint64_t total = cumulative_.back();
  for (int attempt = 0; attempt < kMaxRepeatedDraws; ++attempt) {
    const auto hit = std::upper_bound(cumulative_.begin(), cumulative_.end(), random.below(total));
    const auto expert = static_cast<std::size_t>(hit - cumulative_.begin());
    if (taken_[expert] == 0) return static_cast<std::int32_t>(expert);
  }
  std::uint64_t remaining = random.below(total - taken_popularity);
  for (std::size_t expert = 0;; ++expert) {
    if (taken_[expert] != 0) continue;
    if (remaining < popularity_[expert]) return static_cast<std::int32_t>(expert);
    remaining -= popularity_[expert];
  }
}

}  // namespace epistle
