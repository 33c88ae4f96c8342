// All plans for a request, ranked; where the best one changes; and what to measure next.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "plan/plan.hpp"

namespace epistle {

/// Every combination of EP 1 to 512, TP, redundant experts, dispatcher, SMs and two-batch overlap that the request
/// allows: feasible plans first, the best first; then the others, the most nearly feasible first. Ties in the order of
/// names. Throws kInvalidArgument where the request makes no sense, kNotFound for an unknown dispatcher.
[[nodiscard]] std::vector<Plan> search_plans(const PlanRequest& request, const Calibration& calibration);

/// The best choice under a changed assumption.
struct PlanFlip {
  std::string assumption;  ///< "link bandwidth x 0.5"
  std::string best;        ///< name of the choice, or "none fits"
  double step_us = 0;
  bool flips = false;  ///< another EP, TP or dispatcher than without the change
};

[[nodiscard]] std::vector<PlanFlip> find_flips(const PlanRequest& request, const Calibration& calibration,
                                               const Plan& best);

/// The best choice where two things are otherwise at once.
struct FlipCell {
  double tokens_factor = 1;    ///< of the tokens of a step
  double network_factor = 1;   ///< of the network's bandwidth
  std::string best;            ///< name of the choice, or "none fits"
  std::int32_t num_ranks = 0;  ///< EP of it; 0 = none fits
  double step_us = 0;
};

/// A search for every cell: a quarter to four times the tokens, a quarter to four times the network.
[[nodiscard]] std::vector<FlipCell> map_flips(const PlanRequest& request, const Calibration& calibration);

/// The best dispatcher for a number of tokens per rank, everything else as in `best`.
struct CrossoverPoint {
  double tokens = 0;
  std::string_view mode;
  double exchange_us = 0;  ///< dispatch and combine
};

[[nodiscard]] std::vector<CrossoverPoint> find_crossovers(const PlanRequest& request, const Calibration& calibration,
                                                          const Plan& best);

/// Time of the exchange of `best` for other numbers of SMs.
struct SmPoint {
  std::int32_t num_sms = 0;
  double exchange_us = 0;
  double us_per_sm = 0;  ///< what one SM more saves, from the number before
};

[[nodiscard]] std::vector<SmPoint> vary_sms(const PlanRequest& request, const Calibration& calibration,
                                            const Plan& best);

}  // namespace epistle
