// A curve fitted to measurements: constants for each library and GPU, pooled with those of their relatives; a field for
// what constants leave over; and intervals whose width is set by leaving groups of measurements out.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "cost/curves.hpp"
#include "cost/fit/least_squares.hpp"
#include "cost/fit/residual_field.hpp"

namespace epistle {

/// One measured time, and what was done in it.
struct Observation {
  std::string table;  ///< of which it is a cell
  std::string label;  ///< for people
  FieldPoint point;
  std::variant<ExchangeWork, GemmWork> work;
  double us = 0;
  bool for_constants_only = false;  ///< a part of a time that is there as a whole, too: it tells constants apart
};

/// A constant of a curve, before any measurement is seen.
struct ConstantPrior {
  std::string_view name;
  std::string_view unit;
  double value = 1.0;
  double factor = 1.5;             ///< one standard deviation: a factor up or down
  std::string_view identified_by;  ///< the measurement that tells its value
};

/// What a family of libraries has in common.
struct CurveFamily {
  std::string_view name;
  std::string_view source;  ///< of the priors
  std::vector<ConstantPrior> constants;
  std::vector<std::string_view> quantities;  ///< of FieldPoint::position
  std::size_t num_varied = 1;                ///< the first ones: those that a sweep varies; others are settings
  FieldScales scales;                        ///< to start with
  /// The field weighs measurements against the priors along the slopes of the curve. Not where what is measured lies so
  /// far from them that slopes do not reach: then what constants were fitted to is all that it starts from.
  bool field_knows_priors = true;
  /// The share of the factors of priors by which the field has all constants in doubt together.
  double doubt = 1.0;
  /// Time of `work` for constants in the order of `constants`.
  double (*time_us)(const std::variant<ExchangeWork, GemmWork>& work, std::span<const double> constants);
};

/// How far a forecast is from what was measured: the further, the wider its interval.
enum class Novelty : std::int32_t {
  kSeen,     ///< this library on this GPU, with these ranks, SMs and widths
  kSetting,  ///< another number of ranks or SMs, or another width
  kLibrary,  ///< a library, version or GPU that was not measured
};
inline constexpr std::size_t kNumNovelties = 3;

struct Forecast {
  double us = 0;
  double low_us = 0;  ///< 90% of measurements lie between low and high
  double high_us = 0;
  Novelty novelty = Novelty::kSeen;
};

struct ConstantFit {
  std::string_view name;
  std::string_view unit;
  double value = 0;
  double low = 0;  ///< 90%
  double high = 0;
  bool identified = false;  ///< by the data; otherwise it is the prior
};

class CalibratedCurve {
 public:
  /// Without observations everything is the prior.
  CalibratedCurve(const CurveFamily& family, std::vector<Observation> observations);

  [[nodiscard]] Forecast predict(const Observation& wanted) const;
  [[nodiscard]] const CurveFamily& family() const noexcept { return *family_; }
  [[nodiscard]] const std::vector<Observation>& observations() const noexcept { return observations_; }
  /// The constants that all libraries of the family share.
  [[nodiscard]] std::vector<ConstantFit> constants() const;
  /// Of the library and GPU of `path`, or of its nearest relatives; in the family's order.
  [[nodiscard]] std::vector<double> constants_at(const std::vector<std::string>& path) const;
  [[nodiscard]] const std::array<double, kNumNovelties>& widths() const noexcept { return widths_; }

 private:
  struct Unsized {};  // without widths: for the fits that set them
  CalibratedCurve(const CurveFamily& family, std::vector<Observation> observations, Unsized);

  struct LogForecast {
    double log_us = 0;
    double sigma = 0;
    Novelty novelty = Novelty::kSeen;
    std::size_t shared_levels = 0;  ///< most names that the path of a measurement shares
    std::vector<bool> is_new;       ///< [quantities]; kSetting: those whose value this library has not shown
  };
  /// The curve that the field starts from, at a place, and how the fitted one moves with its constants there.
  struct Linearised {
    FieldPoint point;
    double log_us = 0;
  };
  struct Fold {
    std::vector<bool> is_out;  ///< [observations]
    std::size_t quantity = 0;  ///< that it leaves a value of out; the number of quantities = none
  };
  [[nodiscard]] double width_of(const LogForecast& forecast) const;
  void fit_nodes();
  [[nodiscard]] std::size_t count_below(const std::vector<std::string>& path) const;
  [[nodiscard]] FitResult fit_node(const std::vector<const Observation*>& members, const FitResult* parent,
                                   std::size_t level) const;
  void fit_field();
  void set_widths();
  [[nodiscard]] std::vector<Fold> make_folds() const;
  struct FoldErrors {
    std::array<std::vector<double>, kNumNovelties> by_novelty;
    std::vector<std::vector<double>> by_shared_levels;  ///< of kLibrary
  };
  [[nodiscard]] FoldErrors errors_of(const Fold& fold) const;
  [[nodiscard]] LogForecast log_forecast(const Observation& wanted) const;
  [[nodiscard]] double log_curve(const Observation& wanted, std::span<const double> log_values) const;
  [[nodiscard]] Linearised linearise(const Observation& wanted) const;
  [[nodiscard]] const FitResult& node_of(const std::vector<std::string>& path) const;

  const CurveFamily* family_;
  std::vector<Observation> observations_;
  std::map<std::vector<std::string>, FitResult> nodes_;  // by path from the root
  ResidualField field_;
  std::array<double, kNumNovelties> widths_{};  // in sigmas, of a 90% interval
  std::vector<double> library_widths_;          // [shared levels] of kLibrary
  std::vector<double> setting_widths_;          // [quantities] the same where this one has a new value; 0 = not known
};

}  // namespace epistle
