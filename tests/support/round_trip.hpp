// One round trip on a dispatcher that exists already, and what became of a call on every rank: for tests of errors and
// of what works after them.
#pragma once

#include <chrono>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "epistle/dispatcher.hpp"
#include "epistle/group.hpp"

#include "support/player.hpp"

namespace epistle::testing {

/// prepare, dispatch and combine of this rank's share of `round`, compared with the oracle. Needs a free buffer.
[[nodiscard]] inline Mismatch round_trip(Subject& subject, const Round& round) {
  const int rank = subject.group().rank();
  const Checker checker(round);
  RankInputs inputs(round, rank);
  const Handle handle = subject.prepare(inputs.prepare());
  EPISTLE_RETURN_MISMATCH(checker.check_description(rank, subject.read(handle).get()));
  const Received received = subject.dispatch(inputs.dispatch(handle));
  EPISTLE_RETURN_MISMATCH(checker.check_received(rank, subject.read(received).data(), "dispatch"));
  if (!round.combines()) return std::nullopt;
  return check_combine(subject, checker, inputs, received, 9, /*stage=*/true);
}

/// The error of one rank, or nothing where its call went through.
using Outcome = std::optional<Error>;

[[nodiscard]] inline Outcome outcome_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error;
  }
  return std::nullopt;
}

/// What a rank of a bad call has at hand. Its inputs lie one behind the other.
struct Caller {
  Group& group;
  Subject& subject;
  const Round& round;
  RankInputs& inputs;
  int rank;

  [[nodiscard]] std::int64_t num_tokens() const { return round.table(rank).num_tokens; }
  [[nodiscard]] Handle prepare() const { return subject.prepare(inputs.prepare()); }
};

struct CallOutcomes {
  std::vector<Outcome> by_rank;
  std::vector<Mismatch> afterwards;  ///< of a round trip on the same dispatcher
};

/// Every rank makes `call` on a dispatcher of its own, and afterwards a good round trip on the same one.
[[nodiscard]] inline CallOutcomes call_on_all_ranks(const std::string& dispatcher, const Scenario& scenario,
                                                    const std::function<void(const Caller&)>& call,
                                                    const SubjectOptions& options = {}) {
  const std::size_t num_ranks = scenario.tokens_per_rank.size();
  CallOutcomes outcomes{std::vector<Outcome>(num_ranks), std::vector<Mismatch>(num_ranks)};
  run_thread_ranks(static_cast<int>(num_ranks),
                   [&](Group& group) {
                     const auto rank = static_cast<std::size_t>(group.rank());
                     const Round round(scenario, 0);
                     RankInputs inputs(round, group.rank());
                     Subject subject(group, dispatcher, scenario.config, options);
                     outcomes.by_rank[rank] = outcome_of([&] { call({group, subject, round, inputs, group.rank()}); });
                     outcomes.afterwards[rank] = round_trip(subject, Round(scenario, 1));
                   },
                   {.timeout = std::chrono::milliseconds(20'000), .domain_size = scenario.domain_size});
  return outcomes;
}

}  // namespace epistle::testing
