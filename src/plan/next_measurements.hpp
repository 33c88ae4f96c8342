// What to measure next, and the commands that do so.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "plan/plan.hpp"

namespace epistle {

struct NextMeasurement {
  std::string what;
  std::string command;   ///< to be run as it stands, on a machine of the cluster
  std::string file;      ///< that the command writes, for --measurements
  double spread_us = 0;  ///< of a step of the plan that it is about, which this would narrow
};

/// Three to five, where dispatchers can be measured: exchanges of the best plan and of those whose intervals reach it;
/// the most uncertain first. `plans` are ranked. Of more ranks than a host has GPUs, as many as it has are measured:
/// the constants of a curve hold for both.
[[nodiscard]] std::vector<NextMeasurement> next_measurements(const PlanRequest& request, const Calibration& calibration,
                                                             std::span<const Plan> plans);

/// A term of a plan that no command of Epistle measures.
struct UnmeasuredTerm {
  std::string name;
  std::string remedy;
  double spread_us = 0;  ///< of a step
};

[[nodiscard]] std::vector<UnmeasuredTerm> unmeasured_terms(const PlanRequest& request, const Plan& plan);

}  // namespace epistle
