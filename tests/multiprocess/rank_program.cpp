#include "multiprocess/rank_program.hpp"

#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include "epistle/dispatcher.hpp"

#include "support/scenario_round.hpp"

namespace epistle::testing {

Scenario scenario_of_failures() {
  Scenario scenario;
  scenario.config = {.hidden = 64, .num_experts = 8, .top_k = 3, .max_tokens = 40};
  scenario.tokens_per_rank = {20, 40, 15, 7};
  return scenario;
}

namespace {

/// Rows that `source` sends to `destination`: tokens with an expert there.
std::int64_t num_pairs(const Round& round, int source, int destination) {
  const RoutingTable& table = round.table(source);
  const ExpertPartition partition{table.num_experts, round.num_ranks()};
  std::int64_t pairs = 0;
  for (std::int64_t token = 0; token < table.num_tokens; ++token) {
    bool goes_there = false;
    for (std::int64_t idx = token * table.top_k; idx < (token + 1) * table.top_k; ++idx) {
      const std::int32_t expert = table.expert_ids[static_cast<std::size_t>(idx)];
      goes_there = goes_there || (expert != kNoExpert && partition.rank_of(expert) == destination);
    }
    if (goes_there) ++pairs;
  }
  return pairs;
}

struct LeaveEarly {};

class RankProgram {
 public:
  RankProgram(const Failure& failure, int rank, ChildReport& report)
      : failure_(failure), rank_(rank), report_(report) {}

  void run(const LaunchInfo& info, std::chrono::milliseconds timeout) {
    Group group = join_process_group(info, {.timeout = timeout, .domain_size = failure_.domain_size});
    call(Step::kCreate);
    Dispatcher dispatcher(group, failure_.dispatcher, scenario_of_failures().config);
    make_calls(dispatcher);
    group.barrier();
  }

  void make_calls(Dispatcher& dispatcher) {
    const Round round(scenario_of_failures(), 0);
    const RoutingTable& table = round.table(rank_);
    const ResolvedConfig& config = round.config();
    std::unique_ptr<FaultingBuffer> buffer;
    call(Step::kLayout);
    const Handle handle = dispatcher.prepare({.expert_ids = table.ids(), .weights = table.probs()});
    call(Step::kDispatchSend);
    auto payload = round.payload(rank_);
    Pending pending = dispatcher.dispatch_send({.handle = handle,
                                                .tokens = {.data = failing_at(Step::kInsideDispatch, payload, buffer),
                                                           .num_rows = table.num_tokens,
                                                           .hidden = config.hidden,
                                                           .dtype = config.dtype}});
    call(Step::kDispatchReceive);
    const Received received = dispatcher.dispatch_receive(std::move(pending));
    call(Step::kCombineSend);
    auto values = round.values(1, rank_, received.num_rows());
    std::vector<std::byte> out(static_cast<std::size_t>(table.num_tokens * round.output_row_bytes()));
    Rows rows = received.expert_outputs();
    rows.data = failing_at(Step::kInsideCombine, values, buffer);
    pending = dispatcher.combine_send({.handle = handle,
                                       .rows = rows,
                                       .out = {.data = failing_at(Step::kInsideSums, out, buffer),
                                               .num_rows = table.num_tokens,
                                               .hidden = config.combine_hidden,
                                               .dtype = config.combine_dtype}});
    call(Step::kCombineReceive);
    dispatcher.combine_receive(std::move(pending));
    report_.progress = kEverythingDone;
  }

 private:
  static constexpr int kEverythingDone = 100;

  [[nodiscard]] bool fails_at(Step step) const { return rank_ == failure_.victim && step == failure_.step; }

  void call(Step step) {
    report_.progress = static_cast<int>(step);
    if (!fails_at(step)) return;
    if (failure_.fault == Fault::kExit) throw LeaveEarly();
    fail_now(failure_.fault);
  }

  /// `own`, or memory of that size at whose first access the victim fails.
  std::byte* failing_at(Step step, std::vector<std::byte>& own, std::unique_ptr<FaultingBuffer>& buffer) const {
    if (!fails_at(step)) return own.data();
    buffer = std::make_unique<FaultingBuffer>(own.size(), failure_.fault);
    return buffer->data();
  }

  const Failure& failure_;
  int rank_;
  ChildReport& report_;
};

}  // namespace

std::string to_text(Step step) {
  constexpr const char* kNames[] = {"Create",         "Layout",          "DispatchSend",
                                    "InsideDispatch", "DispatchReceive", "CombineSend",
                                    "InsideCombine",  "CombineReceive",  "InsideSums"};
  return kNames[static_cast<int>(step)];
}

Phase phase_of(const Failure& failure) {
  switch (failure.step) {
    case Step::kCreate:
      return Phase::kCreate;
    case Step::kLayout:
      return Phase::kLayout;
    case Step::kDispatchSend:
    case Step::kInsideDispatch:
      return Phase::kDispatch;
    case Step::kDispatchReceive:
      // Across domains the others wait for what it is to pass on.
      return failure.domain_size > 0 ? Phase::kDispatch : Phase::kCombine;
    default:
      return Phase::kCombine;
  }
}

Step failing_call_of(Step step) {
  switch (step) {
    case Step::kInsideDispatch:
      return Step::kDispatchReceive;  // sending itself does not wait
    case Step::kInsideCombine:
    case Step::kInsideSums:
      return Step::kCombineReceive;
    default:
      return step;
  }
}

std::int64_t missing_rows_of(const Failure& failure, int rank, Step noticed_in) {
  const Round round(scenario_of_failures(), 0);
  switch (noticed_in) {
    case Step::kDispatchSend:
    case Step::kDispatchReceive:
      return phase_of(failure) == Phase::kDispatch ? num_pairs(round, failure.victim, rank) : -1;
    case Step::kCombineSend:
    case Step::kCombineReceive:
      return failure.step <= Step::kInsideCombine ? num_pairs(round, rank, failure.victim) : -1;
    default:
      return -1;
  }
}

void make_failing_calls(const Failure& failure, int rank, Dispatcher& dispatcher, ChildReport& report) {
  RankProgram(failure, rank, report).make_calls(dispatcher);
}

void play_rank_of(const Failure& failure, const LaunchInfo& info, std::chrono::milliseconds timeout,
                  ChildReport& report) {
  try {
    RankProgram(failure, info.rank, report).run(info, timeout);
  } catch (const LeaveEarly&) {
  }
}

}  // namespace epistle::testing
