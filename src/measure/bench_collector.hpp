// Puts what every rank measured together into one result, the same on all ranks.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "epistle/dispatcher.hpp"
#include "epistle/error.hpp"
#include "epistle/group.hpp"

#include "layout/dispatch_layout.hpp"
#include "measure/bench_types.hpp"
#include "measure/verify.hpp"

namespace epistle {

/// One rank's share of what a phase moves.
struct PhaseBytes {
  std::int64_t algorithm = 0;
  std::int64_t wire = 0;
  LinkBytes links = {};
  std::int64_t moved = 0;
};

/// By BenchPhase.
using BytesOfPhases = std::array<PhaseBytes, kNumBenchPhases>;

[[nodiscard]] BytesOfPhases phase_bytes(const DispatchLayout& layout, const RoutingStats& stats, const WireBytes& wire);

/// `kind` says what was in a row; `times_us`, of one pair and of the slowest rank, are summed up beside it.
[[nodiscard]] PairTimes pair_times(std::string_view dispatcher, PairTimes kind, const std::vector<double>& times_us);

/// What a dispatcher that is measured alone is made with.
[[nodiscard]] Contender contender_of(const BenchSpec& spec, const std::string& dispatcher);

/// True where `error` says that a dispatcher cannot be had here, the same on all ranks, and the group goes on.
[[nodiscard]] bool means_unavailable(const Error& error) noexcept;

/// The times of all phases of one dispatcher. The first iterations warm up and are not kept.
class PhaseTimes {
 public:
  explicit PhaseTimes(const BenchSpec& spec);

  void record(BenchPhase phase, std::int32_t iteration, double time_us);
  [[nodiscard]] const std::vector<double>& of(BenchPhase phase) const noexcept {
    return times_us_[static_cast<std::size_t>(phase)];
  }

 private:
  std::int32_t num_warmups_;
  std::array<std::vector<double>, kNumBenchPhases> times_us_;
};

/// All functions are collective.
class BenchCollector {
 public:
  /// Keeps a reference to `group`. `verifies`: whether outputs are compared.
  BenchCollector(Group& group, bool verifies);

  [[nodiscard]] std::int64_t sum_over_ranks(std::int64_t value) const;
  /// Of those that take part.
  [[nodiscard]] int num_ranks() const noexcept { return num_ranks_; }
  [[nodiscard]] std::int64_t max_over_ranks(std::int64_t value) const;

  /// `expert_counts` in host memory.
  void add_load(const RoutingStats& stats, std::span<const std::int32_t> expert_counts);
  /// One result for each phase of `phases`.
  void add_phases(std::string_view dispatcher, std::span<const BenchPhase> phases, const PhaseTimes& times,
                  const BytesOfPhases& own_bytes);
  /// Whether this rank found a difference or not.
  void add_check(std::string_view dispatcher, const Mismatch& mismatch, std::int64_t num_bytes);
  void add_buffers(std::string_view name, const Dispatcher& dispatcher);

  [[nodiscard]] BenchResult& result() noexcept { return result_; }

 private:
  Group& group_;
  int num_ranks_;  ///< that take part
  BenchResult result_;
};

}  // namespace epistle
