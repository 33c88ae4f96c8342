#include "cost/fit/calibrated_curve.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <tuple>
#include <utility>

#include "cost/fit/quantile.hpp"

namespace epistle {
namespace {

constexpr double kSigmasOf90Percent = 1.645;
constexpr double kIntervalShare = 0.9;
// Without any measurement: priors were fitted together, to times of the same libraries, and so miss by less than the
// factors say which each may take where measurements pull at it.
constexpr double kPriorSigmas = 0.6;
constexpr double kFitNoise = 0.08;        // relative, of a measurement and of the curve: outliers lie beyond
constexpr double kIdentifiedShare = 0.6;  // of the prior's sigma: less is left where data tell a constant
constexpr double kPoolSigma = 0.4;        // of a constant between a GPU or kernel and its relatives
constexpr double kFixedSigma = 1e-4;      // of a constant that is held
constexpr double kSlopeStep = 1e-3;       // of a constant's logarithm
constexpr std::size_t kMinLibraryRows = 3;

/// Of a constant between a node of `level` (1 = below the root) and its relatives, where its prior is `own_sigma` wide.
double pool_sigma(double own_sigma, std::size_t level) {
  return std::min(own_sigma, kPoolSigma) * std::pow(kPoolStep, static_cast<double>(level) - 1.0);
}

std::vector<std::string> prefix_of(const std::vector<std::string>& path, std::size_t levels) {
  return {path.begin(), path.begin() + static_cast<std::ptrdiff_t>(std::min(levels, path.size()))};
}

/// How many independent observations each of `members` counts for. What a curve misses at one number of tokens it
/// misses at the next: a sweep tells as much as it has lengths over which that changes, however closely it was
/// measured.
std::vector<double> independent_shares(const std::vector<const Observation*>& members, const CurveFamily& family) {
  struct Sweep {
    double low = 0;
    double high = 0;
    double count = 0;
  };
  const auto key_of = [&family](const Observation& member) {
    const auto varied = static_cast<std::ptrdiff_t>(family.num_varied);
    return std::make_tuple(member.point.path, member.for_constants_only,
                           std::vector<double>(member.point.position.begin() + varied, member.point.position.end()));
  };
  std::map<decltype(key_of(*members[0])), Sweep> sweeps;
  for (const Observation* const member : members) {
    const double place = member->point.position[0];
    const auto [found, is_new] = sweeps.try_emplace(key_of(*member), Sweep{.low = place, .high = place});
    found->second.low = std::min(found->second.low, place);
    found->second.high = std::max(found->second.high, place);
    found->second.count += 1.0;
  }
  std::vector<double> shares;
  for (const Observation* const member : members) {
    const Sweep& sweep = sweeps.at(key_of(*member));
    shares.push_back(std::min((1.0 + (sweep.high - sweep.low) / family.scales.lengths[0]) / sweep.count, 1.0));
  }
  return shares;
}

using GroupErrors = std::vector<std::vector<double>>;  // in sigmas, of every group that was left out

/// The width, in sigmas, that holds 90% of the errors of groups, each of which counts as much as any other: errors of a
/// group have one cause, and a large one must not outvote the rest.
double pooled_width(const GroupErrors& groups) {
  std::vector<std::pair<double, double>> weighted;  // errors and what each is of the whole
  for (const std::vector<double>& errors : groups) {
    for (const double error : errors) {
      weighted.emplace_back(error, 1.0 / static_cast<double>(errors.size() * groups.size()));
    }
  }
  std::sort(weighted.begin(), weighted.end());
  double below = 0.0;
  for (const auto& [error, weight] : weighted) {
    below += weight;
    if (below >= kIntervalShare) return error;
  }
  return weighted.empty() ? kSigmasOf90Percent : weighted.back().first;
}

/// The width of an interval, in sigmas, of a question that such groups have answered. Few groups say little, and what
/// the field says of itself counts as much as this number of groups.
double width_of_groups(const GroupErrors& groups) {
  constexpr double kGroupsOfField = 4.0;
  const auto count = static_cast<double>(groups.size());
  return (count * pooled_width(groups) + kGroupsOfField * kSigmasOf90Percent) / (count + kGroupsOfField);
}

}  // namespace

CalibratedCurve::CalibratedCurve(const CurveFamily& family, std::vector<Observation> observations, Unsized)
    : family_(&family), observations_(std::move(observations)) {
  fit_nodes();
  fit_field();
  widths_.fill(kSigmasOf90Percent);
}

CalibratedCurve::CalibratedCurve(const CurveFamily& family, std::vector<Observation> observations)
    : CalibratedCurve(family, std::move(observations), Unsized{}) {
  set_widths();
}

double CalibratedCurve::log_curve(const Observation& wanted, std::span<const double> log_values) const {
  std::vector<double> values(log_values.size());
  for (std::size_t idx = 0; idx < values.size(); ++idx) values[idx] = std::exp(log_values[idx]);
  return std::log(family_->time_us(wanted.work, values));
}

void CalibratedCurve::fit_nodes() {
  std::size_t depth = 0;
  for (const Observation& observation : observations_) depth = std::max(depth, observation.point.path.size());
  for (std::size_t levels = 0; levels <= depth; ++levels) {
    std::map<std::vector<std::string>, std::vector<const Observation*>> groups;
    for (const Observation& observation : observations_) {
      if (observation.point.path.size() >= levels) {
        groups[prefix_of(observation.point.path, levels)].push_back(&observation);
      }
    }
    if (levels == 0) groups[{}];  // the root is there without observations, too
    for (const auto& [path, members] : groups) {
      const FitResult* const parent = levels > 0 ? &nodes_.at(prefix_of(path, levels - 1)) : nullptr;
      // Too few to tell anything: the relatives' constants. And who has no relatives would be told the same twice.
      const bool has_relatives = levels == 0 || members.size() < count_below(prefix_of(path, levels - 1));
      if (levels > 0 && (members.size() < kMinLibraryRows || !has_relatives)) continue;
      nodes_[path] = fit_node(members, parent, levels);
    }
    // A node without a fit of its own passes its parent's on.
    for (const auto& [path, members] : groups) {
      if (!nodes_.contains(path)) nodes_[path] = nodes_.at(prefix_of(path, levels - 1));
    }
  }
}

FitResult CalibratedCurve::fit_node(const std::vector<const Observation*>& members, const FitResult* parent,
                                    std::size_t level) const {
  std::vector<LogPrior> priors;
  for (std::size_t idx = 0; idx < family_->constants.size(); ++idx) {
    const ConstantPrior& prior = family_->constants[idx];
    const double own_sigma = std::max(std::log(prior.factor), kFixedSigma);
    if (parent == nullptr) {
      priors.push_back({.log_mean = std::log(prior.value), .log_sigma = own_sigma});
    } else {
      priors.push_back({.log_mean = parent->log_values[idx], .log_sigma = pool_sigma(own_sigma, level)});
    }
  }
  std::vector<double> log_us;
  for (const Observation* const member : members) log_us.push_back(std::log(member->us));
  return fit_constants(
      [&](std::size_t row, std::span<const double> values) { return log_curve(*members[row], values); }, log_us, priors,
      kFitNoise, independent_shares(members, *family_));
}

std::size_t CalibratedCurve::count_below(const std::vector<std::string>& path) const {
  return static_cast<std::size_t>(std::count_if(
      observations_.begin(), observations_.end(),
      [&path](const Observation& observation) { return shared_levels(observation.point.path, path) == path.size(); }));
}

const FitResult& CalibratedCurve::node_of(const std::vector<std::string>& path) const {
  for (std::size_t levels = path.size(); levels > 0; --levels) {
    const auto found = nodes_.find(prefix_of(path, levels));
    if (found != nodes_.end()) return found->second;
  }
  return nodes_.at({});
}

/// What constants may still be wrong by is part of the field: what no measurement tells widens intervals where it
/// matters, and errors that measurements of one kind share do not look like many. So the curve is moved back to the
/// priors along its slopes, and the field finds again what measurements say against them. The constants of a node start
/// from its parent's, for which one relative may be all that is known; the field weighs that against the prior.
CalibratedCurve::Linearised CalibratedCurve::linearise(const Observation& wanted) const {
  const std::vector<double>& values = node_of(wanted.point.path).log_values;
  const double base = log_curve(wanted, values);
  Linearised result{.point = wanted.point, .log_us = base};
  std::vector<double> moved = values;
  // Without observations the width of intervals says it.
  const double doubt = observations_.empty() ? 1.0 : family_->doubt;
  for (std::size_t idx = 0; idx < values.size(); ++idx) {
    const ConstantPrior& prior = family_->constants[idx];
    if (prior.factor <= 1.0) continue;
    moved[idx] = values[idx] + kSlopeStep;
    const double slope = (log_curve(wanted, moved) - base) / kSlopeStep;
    moved[idx] = values[idx];
    const double sigma = std::log(prior.factor);
    if (family_->field_knows_priors) result.log_us += slope * (std::log(prior.value) - values[idx]);
    result.point.slopes.push_back(doubt * slope * sigma);
    result.point.pool_slopes.push_back(doubt * slope * pool_sigma(sigma, 1));
  }
  return result;
}

void CalibratedCurve::fit_field() {
  std::vector<FieldPoint> points;
  std::vector<double> residuals;
  for (const Observation& observation : observations_) {
    if (observation.for_constants_only) continue;
    Linearised place = linearise(observation);
    points.push_back(std::move(place.point));
    residuals.push_back(std::log(observation.us) - place.log_us);
  }
  field_ = ResidualField(std::move(points), std::move(residuals), family_->scales);
}

CalibratedCurve::LogForecast CalibratedCurve::log_forecast(const Observation& wanted) const {
  const Linearised place = linearise(wanted);
  const FieldValue residual = field_.at(place.point);
  LogForecast forecast;
  forecast.log_us = place.log_us + residual.mean;
  forecast.sigma = residual.sigma;
  forecast.novelty = Novelty::kLibrary;
  const auto varied = static_cast<std::ptrdiff_t>(family_->num_varied);
  forecast.is_new.assign(wanted.point.position.size(), true);
  for (const Observation& seen : observations_) {
    if (seen.for_constants_only) continue;
    const std::size_t shared = shared_levels(seen.point.path, wanted.point.path);
    forecast.shared_levels = std::max(forecast.shared_levels, shared);
    // Who asks for any version of a library has seen what was measured of one.
    if (shared < wanted.point.path.size()) continue;
    forecast.novelty = Novelty::kSetting;
    for (std::size_t quantity = 0; quantity < forecast.is_new.size(); ++quantity) {
      if (seen.point.position[quantity] == wanted.point.position[quantity]) forecast.is_new[quantity] = false;
    }
    if (std::equal(seen.point.position.begin() + varied, seen.point.position.end(),
                   wanted.point.position.begin() + varied, wanted.point.position.end())) {
      forecast.novelty = Novelty::kSeen;
      break;
    }
  }
  return forecast;
}

Forecast CalibratedCurve::predict(const Observation& wanted) const {
  const LogForecast forecast = log_forecast(wanted);
  const double width = width_of(forecast) * forecast.sigma;
  return {.us = std::exp(forecast.log_us),
          .low_us = std::exp(forecast.log_us - width),
          .high_us = std::exp(forecast.log_us + width),
          .novelty = forecast.novelty};
}

/// A new number of ranks is another question than a new width of rows: each quantity has its own answer, where it was
/// asked.
double CalibratedCurve::width_of(const LogForecast& forecast) const {
  const double any = widths_[static_cast<std::size_t>(forecast.novelty)];
  if (forecast.novelty == Novelty::kLibrary && forecast.shared_levels < library_widths_.size()) {
    return library_widths_[forecast.shared_levels];
  }
  if (forecast.novelty != Novelty::kSetting) return any;
  double width = 0.0;
  bool all_seen = true;  // one by one, though not together
  for (std::size_t quantity = family_->num_varied; quantity < setting_widths_.size(); ++quantity) {
    if (!forecast.is_new[quantity]) continue;
    all_seen = false;
    width = std::max(width, setting_widths_[quantity]);
  }
  if (all_seen) return any;
  // A question that no group has asked: what others say must not make it look easy.
  return width > 0.0 ? width : std::max(any, kSigmasOf90Percent);
}

/// Groups that are left out whole, each a question that forecasts answer: another number of ranks, of SMs, another
/// width, another version or GPU at every level; and every seventh row, three times, for what was seen.
std::vector<CalibratedCurve::Fold> CalibratedCurve::make_folds() const {
  std::vector<Fold> folds;
  const std::size_t num_quantities = family_->quantities.size();
  const auto add_folds = [&](std::size_t quantity, const auto& key_of) {
    std::map<decltype(key_of(observations_[0])), std::vector<bool>> groups;
    for (std::size_t row = 0; row < observations_.size(); ++row) {
      std::vector<bool>& is_out = groups[key_of(observations_[row])];
      is_out.resize(observations_.size());
      is_out[row] = true;
    }
    if (groups.size() < 2) return;
    for (auto& [key, is_out] : groups) folds.push_back({.is_out = std::move(is_out), .quantity = quantity});
  };
  for (std::size_t quantity = family_->num_varied; quantity < num_quantities; ++quantity) {
    add_folds(quantity, [quantity](const Observation& observation) { return observation.point.position[quantity]; });
  }
  std::size_t depth = 0;
  for (const Observation& observation : observations_) depth = std::max(depth, observation.point.path.size());
  for (std::size_t level = 0; level < depth; ++level) {
    add_folds(num_quantities, [level](const Observation& observation) {
      return level < observation.point.path.size() ? observation.point.path[level] : std::string();
    });
  }
  constexpr std::size_t kSplits = 7;
  for (const std::size_t first : {1U, 3U, 5U}) {
    Fold some{.is_out = {}, .quantity = num_quantities};
    // A part of a time goes with the whole before it.
    std::size_t whole = 0;
    for (const Observation& observation : observations_) {
      if (!observation.for_constants_only) ++whole;
      some.is_out.push_back(whole % kSplits == first);
    }
    folds.push_back(std::move(some));
  }
  return folds;
}

/// Errors of forecasts of what a fold leaves out, in sigmas.
CalibratedCurve::FoldErrors CalibratedCurve::errors_of(const Fold& fold) const {
  FoldErrors errors;
  std::vector<Observation> kept;
  for (std::size_t row = 0; row < observations_.size(); ++row) {
    if (!fold.is_out[row]) kept.push_back(observations_[row]);
  }
  if (kept.empty()) return errors;
  const CalibratedCurve without(*family_, std::move(kept), Unsized{});
  for (std::size_t row = 0; row < observations_.size(); ++row) {
    if (!fold.is_out[row] || observations_[row].for_constants_only) continue;
    const LogForecast forecast = without.log_forecast(observations_[row]);
    const double error = std::fabs(std::log(observations_[row].us) - forecast.log_us) / forecast.sigma;
    errors.by_novelty[static_cast<std::size_t>(forecast.novelty)].push_back(error);
    if (forecast.novelty != Novelty::kLibrary) continue;
    errors.by_shared_levels.resize(std::max(errors.by_shared_levels.size(), forecast.shared_levels + 1));
    errors.by_shared_levels[forecast.shared_levels].push_back(error);
  }
  return errors;
}

void CalibratedCurve::set_widths() {
  if (observations_.empty()) {
    widths_.fill(kPriorSigmas * kSigmasOf90Percent);
    return;
  }
  std::array<GroupErrors, kNumNovelties> needed;
  std::vector<GroupErrors> needed_of_quantity(family_->quantities.size());
  std::vector<GroupErrors> needed_of_levels;
  const auto note = [](const std::vector<double>& errors, GroupErrors& groups) {
    constexpr std::size_t kEnough = 5;
    if (errors.size() >= kEnough) groups.push_back(errors);
  };
  for (const Fold& fold : make_folds()) {
    const FoldErrors errors = errors_of(fold);
    for (std::size_t novelty = 0; novelty < kNumNovelties; ++novelty) {
      note(errors.by_novelty[novelty], needed[novelty]);
    }
    needed_of_levels.resize(std::max(needed_of_levels.size(), errors.by_shared_levels.size()));
    for (std::size_t levels = 0; levels < errors.by_shared_levels.size(); ++levels) {
      note(errors.by_shared_levels[levels], needed_of_levels[levels]);
    }
    if (fold.quantity >= needed_of_quantity.size()) continue;
    note(errors.by_novelty[static_cast<std::size_t>(Novelty::kSetting)], needed_of_quantity[fold.quantity]);
  }
  // What was measured has many rows to go by.
  widths_[static_cast<std::size_t>(Novelty::kSeen)] = pooled_width(needed[static_cast<std::size_t>(Novelty::kSeen)]);
  for (const Novelty novelty : {Novelty::kSetting, Novelty::kLibrary}) {
    widths_[static_cast<std::size_t>(novelty)] = width_of_groups(needed[static_cast<std::size_t>(novelty)]);
  }
  // A new number of ranks is another question than a new width of rows, and a new GPU another than a new version.
  setting_widths_.clear();
  for (const GroupErrors& groups : needed_of_quantity) {
    setting_widths_.push_back(groups.empty() ? 0.0 : width_of_groups(groups));
  }
  library_widths_.clear();
  for (const GroupErrors& groups : needed_of_levels) library_widths_.push_back(width_of_groups(groups));
}

std::vector<double> CalibratedCurve::constants_at(const std::vector<std::string>& path) const {
  std::vector<double> values;
  for (const double log_value : node_of(path).log_values) values.push_back(std::exp(log_value));
  return values;
}

std::vector<ConstantFit> CalibratedCurve::constants() const {
  const FitResult& root = nodes_.at({});
  std::vector<ConstantFit> fits;
  for (std::size_t idx = 0; idx < family_->constants.size(); ++idx) {
    const ConstantPrior& prior = family_->constants[idx];
    const double width = kSigmasOf90Percent * root.log_sigmas[idx];
    fits.push_back({.name = prior.name,
                    .unit = prior.unit,
                    .value = std::exp(root.log_values[idx]),
                    .low = std::exp(root.log_values[idx] - width),
                    .high = std::exp(root.log_values[idx] + width),
                    .identified = root.log_sigmas[idx] < kIdentifiedShare * std::log(prior.factor)});
  }
  return fits;
}

}  // namespace epistle
