// What every rank of these tests does, and where one of them fails.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "epistle/dispatcher.hpp"
#include "epistle/error.hpp"
#include "epistle/group.hpp"

#include "multiprocess/fault.hpp"
#include "multiprocess/reporting_children.hpp"
#include "support/scenario.hpp"

namespace epistle::testing {

inline constexpr int kNumRanks = 4;

/// Where the victim fails: before a call, or inside of one.
enum class Step {
  kCreate,
  kLayout,
  kDispatchSend,
  kInsideDispatch,  ///< its payload is being read: it agreed to the call, and its rows are missing
  kDispatchReceive,
  kCombineSend,
  kInsideCombine,  ///< its expert outputs are being read
  kCombineReceive,
  kInsideSums,  ///< its results are being written
};

inline constexpr Step kSteps[] = {Step::kCreate,         Step::kLayout,          Step::kDispatchSend,
                                  Step::kInsideDispatch, Step::kDispatchReceive, Step::kCombineSend,
                                  Step::kInsideCombine,  Step::kCombineReceive,  Step::kInsideSums};

[[nodiscard]] std::string to_text(Step step);

struct Failure {
  std::string dispatcher;
  Step step;
  Fault fault;
  int victim;
  int domain_size = 0;  ///< as in GroupOptions
};

/// The phase in which the others wait for the victim. What it has sent before counts.
[[nodiscard]] Phase phase_of(const Failure& failure);

/// What the ranks bring to their calls.
[[nodiscard]] Scenario scenario_of_failures();

/// Makes every call of a round trip once on a dispatcher that was made for that, and fails as told: kKill or kStop.
void make_failing_calls(const Failure& failure, int rank, Dispatcher& dispatcher, ChildReport& report);

/// The call (a step that is no "inside") that must fail for the victim itself when it goes on.
[[nodiscard]] Step failing_call_of(Step step);

/// Rows that the victim owes to `rank` in the call in which that one notices; -1 where it owes none there.
[[nodiscard]] std::int64_t missing_rows_of(const Failure& failure, int rank, Step noticed_in);

/// Joins the group, makes every call once and fails as told. A victim with Fault::kExit comes back from here, as a
/// program does that returns from its main: everything is destroyed on the way.
void play_rank_of(const Failure& failure, const LaunchInfo& info, std::chrono::milliseconds timeout,
                  ChildReport& report);

}  // namespace epistle::testing
