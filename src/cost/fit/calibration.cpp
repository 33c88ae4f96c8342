#include "cost/fit/calibration.hpp"

#include <algorithm>
#include <cmath>
#include <set>
#include <tuple>
#include <utility>

#include "cost/fit/families.hpp"
#include "cost/fit/quantile.hpp"

namespace epistle {
namespace {

/// The geometric mean of times that were taken under the same conditions: one observation instead of many.
std::vector<Observation> merge_equal(const std::vector<const Observation*>& observations) {
  using Conditions = std::tuple<std::vector<std::string>, std::vector<double>, bool>;
  std::map<Conditions, std::size_t> places;
  std::vector<Observation> merged;
  std::vector<std::pair<double, double>> sums;  // of logarithms, and how many
  for (const Observation* const observation : observations) {
    const Conditions conditions{observation->point.path, observation->point.position, observation->for_constants_only};
    const auto [place, is_new] = places.emplace(conditions, merged.size());
    if (is_new) {
      merged.push_back(*observation);
      sums.emplace_back(0.0, 0.0);
    }
    sums[place->second].first += std::log(observation->us);
    sums[place->second].second += 1.0;
  }
  for (std::size_t idx = 0; idx < merged.size(); ++idx) merged[idx].us = std::exp(sums[idx].first / sums[idx].second);
  return merged;
}

}  // namespace

Calibration::Calibration(std::span<const MeasurementTable> tables) {
  std::map<std::string, std::vector<const Observation*>> groups;
  for (const CurveFamily& family : curve_families()) groups[std::string(family.name)];
  for (const MeasurementTable& table : tables) {
    for (const MeasuredTime& time : table.times) groups.at(time.curve).push_back(&time.observation);
  }
  for (const auto& [name, observations] : groups) {
    curves_.emplace(name, CalibratedCurve(find_curve_family(name), merge_equal(observations)));
  }
}

Forecast Calibration::predict(const std::string& curve, const Observation& wanted) const {
  return curves_.at(curve).predict(wanted);
}

bool Calibration::is_measured(const std::string& curve) const { return !curves_.at(curve).observations().empty(); }

TableErrors evaluate(const Calibration& calibration, const MeasurementTable& table) {
  TableErrors errors{
      .table = table.name, .num_rows = table.num_rows, .num_times = 0, .worst = {}, .without_measurements = {}};
  std::vector<double> apes;
  std::size_t covered = 0;
  std::set<std::string> unknown;
  for (const MeasuredTime& time : table.times) {
    if (time.observation.for_constants_only) continue;
    ++errors.num_times;
    const Forecast forecast = calibration.predict(time.curve, time.observation);
    const double measured_us = time.observation.us;
    const double ape = 100.0 * std::fabs(forecast.us - measured_us) / measured_us;
    apes.push_back(ape);
    if (measured_us >= forecast.low_us && measured_us <= forecast.high_us) ++covered;
    if (ape >= errors.worst.ape) {
      errors.worst = {.label = time.observation.label,
                      .line = time.line,
                      .measured_us = measured_us,
                      .predicted_us = forecast.us,
                      .ape = ape};
    }
    if (!calibration.is_measured(time.curve)) unknown.insert(time.curve);
  }
  errors.median_ape = quantile(apes, 0.5);
  errors.p90_ape = quantile(apes, 0.9);
  errors.coverage_90 = static_cast<double>(covered) / static_cast<double>(apes.size());
  errors.without_measurements.assign(unknown.begin(), unknown.end());
  return errors;
}

}  // namespace epistle
