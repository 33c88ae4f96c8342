// Steps of ranks that dispatch while weights move, and while they do not, in turns within one run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace epistle::bench {

enum class CopyMode : std::int32_t {
  kIdleThread,   ///< a thread that runs where a core has nothing else to do
  kThread,       ///< a thread as any other
  kBetweenSteps  ///< the ranks themselves, a bounded slice in every advance()
};
inline constexpr CopyMode kCopyModes[] = {CopyMode::kIdleThread, CopyMode::kThread, CopyMode::kBetweenSteps};
[[nodiscard]] std::string_view to_string(CopyMode mode) noexcept;

/// Rank 0's times of dispatch, a list for every segment of steps. Segments take turns, so that whatever else the
/// machine does meets both alike.
struct SegmentTimes {
  std::vector<std::vector<double>> quiet_us;
  std::vector<std::vector<double>> moving_us;
  std::vector<double> quiet_steps_us;  ///< whole steps, advance() with them
  std::vector<double> moving_steps_us;
  std::int64_t bytes_moved = 0;  ///< into rank 0
  std::int64_t num_migrations = 0;
  bool is_pinned = false;  ///< every rank has a core of its own
};

[[nodiscard]] SegmentTimes measure_migration(CopyMode mode, double seconds);

/// A ratio of quantiles, with the interval in which it lies in 95 of 100 draws of segments.
struct RatioInterval {
  double ratio = 0.0;
  double low = 0.0;
  double high = 0.0;
  std::size_t num_segments = 0;
};

/// Of the 99th percentile of all of `above` over that of all of `below`. Whole segments are drawn, each `above` with
/// the `below` next to it: what disturbs a machine lasts longer than a step.
[[nodiscard]] RatioInterval p99_ratio(const std::vector<std::vector<double>>& above,
                                      const std::vector<std::vector<double>>& below);

/// The same of every second quiet segment over the others: what the ratio is worth on this machine. 1 but for noise.
[[nodiscard]] RatioInterval noise_of(const SegmentTimes& times);

/// "ratio (low to high)".
[[nodiscard]] std::string to_text(const RatioInterval& interval);

/// The times of all segments, one segment behind the other.
[[nodiscard]] std::vector<double> all_of(const std::vector<std::vector<double>>& segments);

inline constexpr double kP99Goal = 1.05;

/// "yes" and "no" where the interval lies on one side of the goal; otherwise "within noise", and which side the ratio
/// is.
[[nodiscard]] std::string_view verdict_on(const RatioInterval& interval) noexcept;

}  // namespace epistle::bench
