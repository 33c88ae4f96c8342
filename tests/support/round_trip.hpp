// One round trip on a dispatcher that exists already, and what became of a call on every rank: for tests of errors and
// of what works after them.
#pragma once

#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "epistle/dispatcher.hpp"
#include "epistle/group.hpp"

#include "support/scenario.hpp"

namespace epistle::testing {

/// prepare, dispatch and combine of `rank`'s share of `play`, compared with the oracle.
inline Mismatch round_trip(Dispatcher& dispatcher, int rank, const Play& play) {
  const RoutingTable& table = play.table(rank);
  const Handle handle = dispatcher.prepare(table.view());
  EPISTLE_RETURN_MISMATCH(check_description(play, rank, handle.output()));
  std::vector<std::vector<std::byte>> payloads;
  for (int peer = 0; peer < dispatcher.layout().params().num_ranks; ++peer) payloads.push_back(play.payload(peer));
  const auto scales = play.scales(rank);
  const auto& own = payloads[static_cast<std::size_t>(rank)];
  const DispatchOutput& output = dispatcher.dispatch(
      handle, {.rows = own.data(), .scales = scales.empty() ? nullptr : scales.data(), .num_tokens = table.num_tokens});
  EPISTLE_RETURN_MISMATCH(check_rows(play, rank, output.rows, play.row_bytes(), payloads, "dispatch"));
  if (play.config().combine_hidden == 0) return std::nullopt;
  const auto rows = play.values(9, rank, output.num_rows);
  std::vector<std::byte> out(static_cast<std::size_t>(table.num_tokens * play.combine_row_bytes()));
  dispatcher.combine(handle, rows.data(), out.data(), static_cast<std::int64_t>(out.size()));
  const auto expected = play.combined(9, rank, play.config().apply_weights);
  return compare_bytes(out.data(), expected.data(), out.size(), "combine");
}

/// The error of one rank, or nothing where its call went through.
using Outcome = std::optional<Error>;

inline Outcome outcome_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error;
  }
  return std::nullopt;
}

/// What a rank of a bad call has at hand.
struct Caller {
  Group& group;
  Dispatcher& dispatcher;
  const Play& play;
  int rank;

  [[nodiscard]] RoutingView view() const { return play.table(rank).view(); }
  [[nodiscard]] std::int64_t num_tokens() const { return play.table(rank).num_tokens; }
};

struct CallOutcomes {
  std::vector<Outcome> by_rank;
  std::vector<Mismatch> afterwards;  ///< of a round trip on the same dispatcher
};

/// Every rank makes `call` on a dispatcher of its own, and afterwards a good round trip on the same one.
inline CallOutcomes call_on_all_ranks(const std::string& dispatcher_name, const Scenario& scenario,
                                      const std::function<void(const Caller&)>& call,
                                      const DispatcherFactory& create = make_dispatcher) {
  const std::size_t num_ranks = scenario.tokens_per_rank.size();
  CallOutcomes outcomes{std::vector<Outcome>(num_ranks), std::vector<Mismatch>(num_ranks)};
  run_thread_ranks(static_cast<int>(num_ranks),
                   [&](Group& group) {
                     const auto rank = static_cast<std::size_t>(group.rank());
                     const Play play(scenario, 0);
                     const auto dispatcher = create(dispatcher_name, group, scenario.config);
                     outcomes.by_rank[rank] = outcome_of([&] { call({group, *dispatcher, play, group.rank()}); });
                     outcomes.afterwards[rank] = round_trip(*dispatcher, group.rank(), Play(scenario, 1));
                   },
                   {.timeout = std::chrono::milliseconds(20'000)});
  return outcomes;
}

}  // namespace epistle::testing
