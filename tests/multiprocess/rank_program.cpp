#include "multiprocess/rank_program.hpp"

#include <cstddef>
#include <memory>
#include <vector>

#include "epistle/dispatcher.hpp"

#include "support/scenario.hpp"

namespace epistle::testing {
namespace {

Scenario scenario_of_failures() {
  Scenario scenario;
  scenario.config = {.hidden = 64, .num_experts = 8, .top_k = 3, .max_tokens = 40};
  scenario.tokens_per_rank = {20, 40, 15, 7};
  return scenario;
}

/// Rows that `source` sends to `destination`: tokens with an expert there.
std::int64_t num_pairs(const Play& play, int source, int destination) {
  const RoutingTable& table = play.table(source);
  std::int64_t pairs = 0;
  for (std::int64_t token = 0; token < table.num_tokens; ++token) {
    bool goes_there = false;
    for (std::int64_t idx = token * table.top_k; idx < (token + 1) * table.top_k; ++idx) {
      goes_there = goes_there || play.is_local(destination, table.expert_ids[static_cast<std::size_t>(idx)]);
    }
    if (goes_there) ++pairs;
  }
  return pairs;
}

struct LeaveEarly {};

class RankProgram {
 public:
  RankProgram(const Failure& failure, const LaunchInfo& info, ChildReport& report)
      : failure_(failure), info_(info), report_(report) {}

  void run(std::chrono::milliseconds timeout) {
    const Scenario scenario = scenario_of_failures();
    const Play play(scenario, 0);
    const RoutingTable& table = play.table(info_.rank);
    std::unique_ptr<FaultingBuffer> buffer;
    Group group = join_process_group(info_, {.timeout = timeout});
    call(Step::kCreate);
    const auto dispatcher = make_dispatcher(failure_.dispatcher, group, scenario.config);
    call(Step::kLayout);
    const Handle handle = dispatcher->prepare(table.view());
    call(Step::kDispatchSend);
    auto payload = play.payload(info_.rank);
    dispatcher->dispatch_send(
        handle, {.rows = failing_at(Step::kInsideDispatch, payload, buffer), .num_tokens = table.num_tokens});
    call(Step::kDispatchReceive);
    (void)dispatcher->dispatch_receive(handle);
    call(Step::kCombineSend);
    auto rows = play.values(1, info_.rank, handle.output().num_rows);
    dispatcher->combine_send(handle, failing_at(Step::kInsideCombine, rows, buffer));
    call(Step::kCombineReceive);
    std::vector<std::byte> out(static_cast<std::size_t>(table.num_tokens * play.combine_row_bytes()));
    dispatcher->combine_receive(handle, failing_at(Step::kInsideSums, out, buffer),
                                static_cast<std::int64_t>(out.size()));
    report_.progress = kEverythingDone;
    group.barrier();
  }

 private:
  static constexpr int kEverythingDone = 100;

  [[nodiscard]] bool fails_at(Step step) const { return info_.rank == failure_.victim && step == failure_.step; }

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
  const LaunchInfo& info_;
  ChildReport& report_;
};

}  // namespace

std::string to_text(Step step) {
  constexpr const char* kNames[] = {"Create",         "Layout",          "DispatchSend",
                                    "InsideDispatch", "DispatchReceive", "CombineSend",
                                    "InsideCombine",  "CombineReceive",  "InsideSums"};
  return kNames[static_cast<int>(step)];
}

Phase phase_of(Step step) {
  switch (step) {
    case Step::kCreate:
      return Phase::kCreate;
    case Step::kLayout:
      return Phase::kLayout;
    case Step::kDispatchSend:
    case Step::kInsideDispatch:
      return Phase::kDispatch;
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

std::int64_t missing_rows_of(Step step, int victim, int rank) {
  const Play play(scenario_of_failures(), 0);
  if (step == Step::kInsideDispatch) return num_pairs(play, victim, rank);
  if (step == Step::kInsideCombine) return num_pairs(play, rank, victim);
  return -1;
}

void play_rank_of(const Failure& failure, const LaunchInfo& info, std::chrono::milliseconds timeout,
                  ChildReport& report) {
  try {
    RankProgram(failure, info, report).run(timeout);
  } catch (const LeaveEarly&) {
  }
}

}  // namespace epistle::testing
