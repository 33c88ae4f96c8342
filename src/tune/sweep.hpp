// How settings are chosen: which values of a knob are tried, when that stops, and which of them is taken. It measures
// nothing itself.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "dispatch/registry/profile.hpp"
#include "measure/significance.hpp"
#include "measure/statistics.hpp"

namespace epistle {

enum class TunePolicy : std::int32_t {
  kLatency,     ///< the shortest tail (90th percentile of the period), then the fewest SMs or workers within 2% of it
  kThroughput,  ///< the shortest median period, whatever it takes
  kBalanced,    ///< the fewest SMs or workers whose median period is within 5% of the shortest
};
[[nodiscard]] std::string_view to_string(TunePolicy policy) noexcept;

/// What a policy wants short.
[[nodiscard]] double metric_us(const Summary& period_us, TunePolicy policy) noexcept;

/// One value of a knob, and what it makes of the settings.
struct KnobValue {
  std::string text;
  ProfileSettings settings;
  double cost = 0.0;  ///< SMs, workers or buffers; 0 where a value costs no more than another
};

struct Knob {
  std::string name;
  std::vector<KnobValue> values;
  bool costs = false;         ///< values ascend by cost, and trying stops where more of it brings nothing
  std::size_t start_idx = 0;  ///< the value that the settings have
};

/// What the machine and the plan allow.
struct KnobLimits {
  std::vector<std::string> dispatchers;  ///< those that can serve
  Device device = Device::kHost;
  int max_workers = 1;
  int max_sms = 0;
  int min_buffers = 1;  ///< as many as there are requests at once
};

/// The knobs in the order in which they are turned. The values of each are made when its turn comes, from the settings
/// that were chosen until then.
[[nodiscard]] std::vector<std::string_view> knob_names(Device device);
[[nodiscard]] Knob make_knob(std::string_view name, const ProfileSettings& settings, const KnobLimits& limits);

/// A value that was measured.
struct KnobTrial {
  std::size_t value_idx = 0;
  Summary period_us;
  double relative = 1.0;   ///< its metric over that of the default settings
  std::int64_t bytes = 0;  ///< buffers of the largest rank
  /// Of a knob that costs: against the value before it. Of others: against the settings chosen so far.
  std::string_view verdict = {};
};

/// Values in a row that may bring nothing before a knob that costs is left.
inline constexpr int kPatience = 2;

/// True where no further value of the knob is to be tried.
[[nodiscard]] bool stops(const Knob& knob, const std::vector<KnobTrial>& trials);

/// The position in `trials` of what the policy takes.
[[nodiscard]] std::size_t choose(const Knob& knob, const std::vector<KnobTrial>& trials, TunePolicy policy);

/// What one more unit of cost brought: microseconds of the period saved by each unit between a value and the one
/// before.
[[nodiscard]] std::optional<double> gain_per_unit_us(const Knob& knob, const KnobTrial& before, const KnobTrial& trial);

}  // namespace epistle
