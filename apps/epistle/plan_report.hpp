// What epistle plan prints and writes.
#pragma once

#include <string>
#include <vector>

#include "json_text.hpp"
#include "plan/next_measurements.hpp"
#include "plan/plan_search.hpp"

namespace epistle::cli {

/// All that a request led to.
struct PlanReport {
  const PlanRequest* request = nullptr;
  const Calibration* calibration = nullptr;
  std::vector<Plan> plans;  ///< ranked
  std::vector<PlanFlip> flips;
  std::vector<FlipCell> flip_map;  ///< of a page only: it takes a search for every cell
  std::vector<CrossoverPoint> crossovers;
  std::vector<SmPoint> sm_points;
  std::vector<NextMeasurement> measurements;
  std::vector<UnmeasuredTerm> unmeasured;  ///< terms of the best plan
};

[[nodiscard]] std::string render_plan_report(const PlanReport& report, int num_shown);

[[nodiscard]] Json plan_report_json(const PlanReport& report);

/// The same as a page with charts.
[[nodiscard]] std::string render_plan_page(const PlanReport& report);

/// Why `first` is ahead of `second`, or behind it, term by term.
[[nodiscard]] std::string render_explanation(const Plan& first, const Plan& second);

[[nodiscard]] Json explanation_json(const PlanRequest& request, const Plan& first, const Plan& second);

}  // namespace epistle::cli
