// Plays a scenario on a dispatcher of any device, and has everything that comes of it checked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "epistle/dispatcher.hpp"

#include "support/checker.hpp"
#include "support/scenario_round.hpp"
#include "support/strided.hpp"
#include "support/subject.hpp"

namespace epistle::testing {

/// What a rank gives to the calls of a round, in the memory that the scenario asks for.
class RankInputs {
 public:
  RankInputs(const Round& round, int rank);

  [[nodiscard]] static ScaleFormat scale_format(const ResolvedConfig& config) {
    return config.dtype == DType::kRaw ? ScaleFormat::kBytes : ScaleFormat::kFp32;
  }

  [[nodiscard]] PrepareRequest prepare() const {
    return {.expert_ids = routing_.ids(),
            .weights = routing_.weights(),
            .num_tokens = counted(),
            .step_seed = seed_in_memory() ? 0 : step_seed_,
            .step_seed_at = seed_in_memory() ? &step_seed_ : nullptr};
  }
  [[nodiscard]] DispatchRequest dispatch(const Handle& handle) {
    return {.handle = handle, .tokens = tokens_.view(), .scales = scales_.view()};
  }
  /// prepare and dispatch in one call.
  [[nodiscard]] DispatchRequest prepare_and_dispatch() {
    return {.expert_ids = routing_.ids(),
            .weights = routing_.weights(),
            .num_tokens = counted(),
            .step_seed = seed_in_memory() ? 0 : step_seed_,
            .step_seed_at = seed_in_memory() ? &step_seed_ : nullptr,
            .tokens = tokens_.view(),
            .scales = scales_.view()};
  }

  /// Rows of expert outputs, or of gradients.
  [[nodiscard]] RowsBuffer output_rows(std::int64_t num_rows, const std::vector<std::byte>& compact) const {
    return RowsBuffer(output_shape(num_rows), compact);
  }
  /// Room for sums of this rank's tokens.
  [[nodiscard]] RowsBuffer sums() const { return RowsBuffer(output_shape(num_tokens_)); }

 private:
  [[nodiscard]] bool seed_in_memory() const { return round_.scenario().seed_in_memory; }
  [[nodiscard]] bool strided() const { return round_.scenario().strided; }
  [[nodiscard]] RowsBuffer::Shape output_shape(std::int64_t num_rows) const {
    return {num_rows, round_.config().combine_hidden, round_.config().combine_dtype, strided()};
  }
  [[nodiscard]] const std::int32_t* counted() const { return round_.scenario().counted < 0.0 ? nullptr : &counted_; }

  const Round& round_;
  std::int64_t num_tokens_;
  std::int32_t counted_;
  std::uint64_t step_seed_;
  RoutingBuffer routing_;
  RowsBuffer tokens_;
  ScalesBuffer scales_;
};

/// Collective: sets the placement of round `idx`, where the scenario has one for it.
void place_for_round(Subject& subject, const Round& round, int idx);

/// Both backward passes of a handle. `leased` is what its last dispatch gave; it is given back on the way.
[[nodiscard]] Mismatch check_backward(Subject& subject, const Checker& checker, const RankInputs& inputs,
                                      const Handle& handle, Received& leased);

/// combine of values of `stream`, checked: from the lease itself, or from private memory.
[[nodiscard]] Mismatch check_combine(Subject& subject, const Checker& checker, const RankInputs& inputs,
                                     const Received& received, Round::ValueStream stream, bool stage);

/// Collective: plays the scenario on a dispatcher that exists already.
[[nodiscard]] Mismatch play_on(Subject& subject, const Scenario& scenario);

/// Collective: creates a dispatcher and plays the scenario on it.
[[nodiscard]] Mismatch play_rank(Group& group, const std::string& dispatcher, const Scenario& scenario,
                                 const SubjectOptions& options = {});

/// The same on every rank of a group of threads, in the scenario's domains; what each rank found.
[[nodiscard]] std::vector<Mismatch> play_over_threads(const std::string& dispatcher, const Scenario& scenario,
                                                      const SubjectOptions& options = {});

}  // namespace epistle::testing
