// The ranks of `epistle bench` where they are processes: they agree on what to run, and one of them speaks for all.
#pragma once

#include <functional>

#include "epistle/error.hpp"
#include "epistle/group.hpp"

#include "bench_options.hpp"
#include "bench_plan.hpp"

namespace epistle::cli {

/// What a rank does with the plan; returns its exit code.
using RankBody = std::function<int(Group& group, const BenchPlan& plan)>;

/// Runs `body` as the rank that `info` says, with a plan that all ranks agree on. Returns the exit code. Where all
/// ranks fail alike, or all of them see one fail, only one reports it: throws there, and returns an exit code on the
/// others.
[[nodiscard]] int run_launched_rank(const LaunchInfo& info, const BenchOptions& options, const RankBody& body);

/// True where `rank` is to report `error` of a collective call, which the other ranks have met, too.
[[nodiscard]] bool speaks_for_all(const Error& error, int rank) noexcept;

}  // namespace epistle::cli
