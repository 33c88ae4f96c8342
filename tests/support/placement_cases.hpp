// Placements that change between two calls, what is refused, and what expert_tokens() counts, on any device. That every
// layout and pass works with placements is in the scenarios of the round trips.
#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "epistle/dispatcher.hpp"

#include "support/bad_rank.hpp"
#include "support/placements.hpp"
#include "support/round_trip.hpp"

namespace epistle::testing {

/// A dispatcher of a device.
struct PlacedDispatcher {
  std::string name;
  SubjectOptions options = {};
};

/// With placements of generations 1, 4, 7, ...
[[nodiscard]] inline Scenario placed_scenario(std::uint64_t seed) {
  Scenario scenario = small_scenario();
  scenario.config.layout = ExpertMajor{.alignment = 4};
  scenario.placement_seed = seed;
  scenario.num_rounds = 4;
  place_experts(scenario);
  return scenario;
}

/// What became of a call of every rank, each on a dispatcher of its own.
[[nodiscard]] inline std::vector<Outcome> on_placed_ranks(const PlacedDispatcher& dispatcher, const Scenario& scenario,
                                                          const std::function<void(const Caller&)>& call) {
  CallOutcomes outcomes = call_on_all_ranks(dispatcher.name, scenario, call, dispatcher.options);
  // The round trip afterwards takes place with the placement that the scenario has in its second round.
  for (std::size_t rank = 0; rank < outcomes.afterwards.size(); ++rank) {
    EXPECT_FALSE(outcomes.afterwards[rank].has_value()) << "rank " << rank << ": " << *outcomes.afterwards[rank];
  }
  return outcomes.by_rank;
}

inline void expect_all(const std::vector<Outcome>& outcomes, ErrorCode code, const std::vector<std::string>& parts) {
  for (std::size_t rank = 0; rank < outcomes.size(); ++rank) {
    SCOPED_TRACE("rank " + std::to_string(rank));
    ASSERT_TRUE(outcomes[rank].has_value());
    EXPECT_EQ(outcomes[rank]->code(), code) << outcomes[rank]->what();
    for (const std::string& part : parts) {
      EXPECT_NE(std::string(outcomes[rank]->what()).find(part), std::string::npos) << outcomes[rank]->what();
    }
  }
}

inline void expect_none(const std::vector<Outcome>& outcomes) {
  for (const Outcome& outcome : outcomes) EXPECT_FALSE(outcome.has_value()) << outcome->what();
}

inline void expect_different_ones_are_told(const PlacedDispatcher& dispatcher) {
  const Scenario scenario = placed_scenario(3);
  const Placement& next = scenario.next_placements.front();
  for (const bool other_generation : {false, true}) {
    SCOPED_TRACE(other_generation ? "another generation" : "other slots");
    const auto outcomes = on_placed_ranks(dispatcher, scenario, [&](const Caller& caller) {
      Placement mine = next;
      if (caller.rank == kBadRank) {
        std::vector<std::vector<std::int32_t>> slots;
        for (int rank = 0; rank < next.num_ranks(); ++rank) {
          const auto here = next.experts_of(rank);
          slots.emplace_back(here.rbegin(), here.rend());
        }
        mine = other_generation ? Placement(next.num_experts(), slots, next.generation() + 1)
                                : Placement(next.num_experts(), slots, next.generation());
      }
      const Outcome outcome =
          outcome_of([&] { caller.subject.dispatcher().set_placement(mine, caller.subject.stream()); });
      // The old one stays in force, and the next one can be set.
      EXPECT_EQ(caller.subject.dispatcher().placement(), scenario.config.placement);
      caller.subject.dispatcher().set_placement(next, caller.subject.stream());
      if (outcome) throw Error(*outcome);
    });
    expect_all(outcomes, ErrorCode::kShapeMismatch, {"set_placement", "rank 1", "the same placement"});
  }
}

inline void expect_older_one_is_refused(const PlacedDispatcher& dispatcher) {
  const Scenario scenario = placed_scenario(4);
  const auto outcomes = on_placed_ranks(dispatcher, scenario, [&](const Caller& caller) {
    Dispatcher& moe = caller.subject.dispatcher();
    moe.set_placement(scenario.next_placements.front(), caller.subject.stream());
    moe.set_placement(scenario.next_placements.front(), caller.subject.stream());
  });
  expect_all(outcomes, ErrorCode::kInvalidArgument, {"generation 4", "the one in force 4"});
}

inline void expect_one_without_room_is_refused(const PlacedDispatcher& dispatcher) {
  Scenario scenario = small_scenario();
  scenario.config.placement = Placement(7, {{0, 1, 2}, {3, 4}, {5, 6}}, 1);
  scenario.config.slots_per_rank = 4;
  scenario.next_placements = {Placement(7, {{0, 1, 2, 6}, {3, 4}, {5, 6}}, 4)};
  const auto outcomes = on_placed_ranks(dispatcher, scenario, [&](const Caller& caller) {
    Dispatcher& moe = caller.subject.dispatcher();
    const Outcome outcome = outcome_of([&] {
      moe.set_placement(Placement(7, {{0, 1, 2, 3, 4}, {5}, {6}}, 9), caller.subject.stream());
    });
    moe.set_placement(scenario.next_placements.front(), caller.subject.stream());
    if (outcome) throw Error(*outcome);
  });
  expect_all(outcomes, ErrorCode::kInvalidArgument, {"slots_per_rank"});
}

inline void expect_trivial_one_is_kept(const PlacedDispatcher& dispatcher) {
  const auto outcomes = on_placed_ranks(dispatcher, small_scenario(), [&](const Caller& caller) {
    Dispatcher& moe = caller.subject.dispatcher();
    EXPECT_TRUE(moe.placement().is_trivial());
    moe.set_placement(Placement(7, {{0, 1, 2}, {3, 4}, {5, 6}}, 1), caller.subject.stream());
  });
  expect_all(outcomes, ErrorCode::kInvalidArgument, {"trivial placement only", "slots_per_rank"});
}

inline void expect_handles_go_on(const PlacedDispatcher& dispatcher) {
  const Scenario scenario = placed_scenario(8);
  const auto outcomes = on_placed_ranks(dispatcher, scenario, [&](const Caller& caller) {
    Dispatcher& moe = caller.subject.dispatcher();
    const Checker checker(caller.round);
    const Handle old = caller.prepare();
    moe.set_placement(scenario.next_placements.front(), caller.subject.stream());
    EXPECT_EQ(moe.placement(), scenario.next_placements.front());
    EXPECT_EQ(old.description().placement_generation, scenario.config.placement.generation());
    Received received = caller.subject.dispatch(caller.inputs.dispatch(old));
    const Mismatch rows = checker.check_received(caller.rank, caller.subject.read(received).data(), "old handle");
    EXPECT_FALSE(rows.has_value()) << *rows;
    const Mismatch sums = check_combine(caller.subject, checker, caller.inputs, received, 9, /*stage=*/false);
    EXPECT_FALSE(sums.has_value()) << *sums;
    const Mismatch backward = check_backward(caller.subject, checker, caller.inputs, old, received);
    EXPECT_FALSE(backward.has_value()) << *backward;
  });
  expect_none(outcomes);
}

/// Flat sums of expert rows do not depend on where the experts are: the bits of the trivial placement.
inline void expect_flat_sums_of_the_trivial_one(const PlacedDispatcher& dispatcher) {
  Scenario trivial = small_scenario();
  trivial.config.layout = ExpertMajor{};
  trivial.config.order = SumOrder::kFlat;
  Scenario placed = trivial;
  placed.placement_seed = 9;
  place_experts(placed);
  std::vector<std::vector<std::byte>> sums;
  for (const Scenario& scenario : {trivial, placed}) {
    std::vector<std::vector<std::byte>> of_rank(scenario.tokens_per_rank.size());
    run_thread_ranks(scenario.num_ranks(), [&](Group& group) {
      const Round round(scenario, 0);
      RankInputs inputs(round, group.rank());
      Subject subject(group, dispatcher.name, scenario.config, dispatcher.options);
      const Received received = subject.dispatch(inputs.prepare_and_dispatch());
      const ReceivedCopy copy = subject.read(received);
      // An expert's output is its input times the number of the expert: exact, and the same in every slot.
      const RowDescription& rows = copy.data().description;
      std::vector<std::byte> outputs(static_cast<std::size_t>(rows.num_rows * round.output_row_bytes()));
      const auto experts = placed.config.placement.experts_of(group.rank());
      for (std::int64_t row = 0; row < rows.num_rows; ++row) {
        if (rows.row_expert[row] < 0) continue;
        const std::int32_t local = rows.row_expert[row];
        const std::int32_t expert =
            rows.first_expert >= 0 ? rows.first_expert + local : experts[static_cast<std::size_t>(local)];
        const auto values = round.row_values(17, rows.src_rank[row], rows.src_token[row] * 8 + expert);
        for (std::size_t idx = 0; idx < values.size(); ++idx) {
          reference::write_element(round.config().combine_dtype, outputs.data() + row * round.output_row_bytes(),
                                   static_cast<std::int64_t>(idx), values[idx]);
        }
      }
      subject.write_outputs(received, outputs);
      RowsBuffer out = inputs.sums();
      subject.combine({.received = received, .out = out.view()});
      of_rank[static_cast<std::size_t>(group.rank())] = out.compact();
    });
    for (const auto& bytes : of_rank) sums.push_back(bytes);
  }
  const std::size_t num_ranks = trivial.tokens_per_rank.size();
  for (std::size_t rank = 0; rank < num_ranks; ++rank) EXPECT_EQ(sums[rank], sums[num_ranks + rank]) << rank;
}

inline void expect_refused_routings_do_not_count(const PlacedDispatcher& dispatcher) {
  const auto outcomes = on_placed_ranks(dispatcher, small_scenario(), [&](const Caller& caller) {
    Dispatcher& moe = caller.subject.dispatcher();
    const std::vector<std::int32_t> bad = {0, 99};
    EXPECT_TRUE(outcome_of([&] {
      if (caller.rank != kBadRank) {
        (void)caller.prepare();
      } else {
        (void)caller.subject.prepare({.expert_ids = {bad.data(), 1, 2}});
      }
    }));
    for (const std::int64_t tokens : moe.expert_tokens()) EXPECT_EQ(tokens, 0);
  });
  expect_none(outcomes);
}

inline void expect_counts_can_be_read_meanwhile(const PlacedDispatcher& dispatcher) {
  const Scenario scenario = placed_scenario(10);
  const auto outcomes = on_placed_ranks(dispatcher, scenario, [&](const Caller& caller) {
    Dispatcher& moe = caller.subject.dispatcher();
    std::atomic<bool> stop{false};
    bool grows = true;
    std::thread reader([&] {
      std::vector<std::int64_t> last = moe.expert_tokens();
      while (!stop.load()) {
        const std::vector<std::int64_t> now = moe.expert_tokens();
        for (std::size_t expert = 0; expert < now.size(); ++expert) grows = grows && now[expert] >= last[expert];
        last = now;
      }
    });
    for (int call = 0; call < 20; ++call) (void)caller.prepare();
    stop = true;
    reader.join();
    EXPECT_TRUE(grows);
    moe.set_placement(scenario.next_placements.front(), caller.subject.stream());
  });
  expect_none(outcomes);
}

}  // namespace epistle::testing
