// What `epistle tune` measures, on all ranks alike.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "epistle/group.hpp"

#include "bench_options.hpp"
#include "bench_plan.hpp"
#include "report/progress.hpp"
#include "tune/sweep.hpp"

namespace epistle::cli {

/// One knob, turned.
struct TunedKnob {
  Knob knob;
  std::vector<KnobTrial> trials;
  std::size_t chosen_idx = 0;  ///< in trials
  std::string stop;            ///< why no more values were tried
  std::vector<Unavailable> unavailable = {};
};

/// low_latency and direct at one number of tokens.
struct TunedCrossover {
  std::int64_t num_tokens = 0;
  Summary low_latency_us;
  Summary direct_us;
  std::string_view verdict;  ///< of direct
};

struct TuneResult {
  BenchResult first;  ///< the default settings in the whole group, verified
  BenchResult last;   ///< default and tuned settings in turns, verified
  ProfileSettings defaults;
  ProfileSettings settings;  ///< what the profile gets
  std::vector<TunedKnob> knobs;
  std::optional<Difference> difference;  ///< tuned less default
  double ratio = 1.0;                    ///< of the medians, tuned over default
  bool found_defaults = false;           ///< every knob was best where it is by default
  bool kept_defaults = false;            ///< since nothing better was found, or what was found did not stand
  std::vector<TunedCrossover> crossover;
  std::string no_crossover;  ///< why there is none; empty = there is
};

/// Collective: everything. Returns the same on all ranks.
[[nodiscard]] TuneResult run_tune(Group& group, const BenchPlan& plan, const BenchOptions& options, TunePolicy policy,
                                  Progress& progress);

/// The settings that nothing was tuned with.
[[nodiscard]] ProfileSettings default_settings(const BenchPlan& plan);

}  // namespace epistle::cli
