// What `epistle bench` runs: its options with a model, a trace and defaults filled in, and checked.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "epistle/dispatcher_info.hpp"
#include "epistle/routing.hpp"
#include "epistle/types.hpp"

#include "bench_options.hpp"
#include "dispatch/call/resolved_config.hpp"
#include "dispatch/registry/profile.hpp"
#include "measure/bench_types.hpp"

namespace epistle::cli {

struct BenchPlan {
  BenchSpec spec;
  ResolvedConfig resolved;  ///< of the spec's configuration
  int num_ranks = 1;
  GroupKind group = GroupKind::kThreads;
  std::vector<std::int64_t> tokens_per_rank;
  std::vector<int> masked;  ///< ranks that the group goes on without, ascending
  std::string model;        ///< canonical name; empty = custom shape
  RoutingSpec routing;
  std::string placement;                 ///< as it was given; empty = the trivial one
  std::int32_t trace_layer = -1;         ///< -1 = the first of the trace
  std::vector<RoutingTable> tables;      ///< all ranks'
  std::int64_t dropped_by_router = 0;    ///< assignments that the capacity factor removed, over all ranks
  std::optional<StoredProfile> profile;  ///< where --profile names one
  std::vector<Unavailable> unavailable;  ///< comparisons: dispatchers that cannot serve this
  std::int64_t router_capacity = 0;      ///< tokens an expert takes from the largest rank; 0 = no capacity factor
};

/// Throws Error for values that make no sense, alone or together, and for a run that memory cannot hold. Everything
/// but the expectation of the spec is filled in.
[[nodiscard]] BenchPlan make_bench_plan(const BenchOptions& options, int num_ranks, GroupKind group);

/// Throws kUnsupported where the machine cannot run the plan: no GPU for --device cuda; and kShapeMismatch where its
/// profile is for something else. The CUDA runtime may start threads, so the process that starts the ranks does not ask
/// this.
void require_device(const BenchPlan& plan);

/// What a profile of this plan would be for.
[[nodiscard]] ProfileUse profile_use(const BenchPlan& plan);

/// The dispatchers of a device, in order of preference. Throws kUnsupported where this build does not have it.
[[nodiscard]] std::vector<const DispatcherInfo*> dispatchers_of(Device device);

/// The device that --device names.
[[nodiscard]] Device device_of(const BenchOptions& options) noexcept;

/// Asks the oracle what the outputs must be, unless the options say --no-verify.
void add_expectation(const BenchOptions& options, BenchPlan& plan);

}  // namespace epistle::cli
