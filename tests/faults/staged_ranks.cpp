#include "faults/staged_ranks.hpp"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <set>

#include <sys/wait.h>
#include <unistd.h>

#include <fmt/format.h>

#include "epistle/dispatcher.hpp"
#include "epistle/group.hpp"

#include "support/process_ranks.hpp"
#include "support/round_trip.hpp"

namespace epistle::testing {
namespace {

// Beyond twice the timeout; who still runs then would run for ever.
constexpr std::chrono::milliseconds kStageSlack{30'000};
constexpr std::size_t kGatherBytes = std::size_t{1} << 20;

Scenario staged_scenario(int num_ranks, std::int64_t num_tokens) {
  Scenario scenario;
  scenario.config.hidden = 256;
  scenario.config.num_experts = 7;
  scenario.config.top_k = 2;
  scenario.config.max_tokens = 40;
  for (int rank = 0; rank < num_ranks; ++rank) scenario.tokens_per_rank.push_back(num_tokens + rank);
  return scenario;
}

Scenario capacity_scenario(int num_ranks) {
  Scenario scenario = staged_scenario(num_ranks, 5);
  scenario.config.sizing = Capacity{.rows_per_rank = 40L * num_ranks};
  return scenario;
}

int num_open_descriptors() {
  const std::filesystem::directory_iterator begin("/proc/self/fd");
  return static_cast<int>(std::distance(begin, std::filesystem::directory_iterator()));
}

/// Every rank's byte, repeated; the last ones tell the ranks apart too.
void check_gather(Group& group) {
  std::vector<unsigned char> own(kGatherBytes, static_cast<unsigned char>(group.rank() + 1));
  std::vector<unsigned char> all(kGatherBytes * static_cast<std::size_t>(group.size()));
  group.all_gather(own.data(), own.size(), all.data());
  for (std::size_t idx = 0; idx < all.size(); ++idx) {
    if (all[idx] == idx / kGatherBytes + 1) continue;
    throw std::runtime_error(fmt::format("all_gather: byte {} is {}", idx, all[idx]));
  }
}

void check(const Mismatch& mismatch) {
  if (mismatch) throw std::runtime_error(*mismatch);
}

class StagedRank {
 public:
  StagedRank(const StagedRanks::Options& options, const LaunchInfo& info, StagedRecord& record)
      : options_(options), info_(info), record_(record) {}

  void run() {
    const int descriptors_before = num_open_descriptors();
    watch_system_calls(info_.rank == options_.victim ? options_.fault : SystemCallFault{});
    std::optional<Error> error;
    {
      std::optional<Group> group;
      try {
        enter(Stage::kJoin);
        group.emplace(join_process_group(info_, {.timeout = options_.timeout}));
        play(*group);
      } catch (const Error& caught) {
        error = caught;
      }
      note_fault();
      if (error && group && !breaks_the_group(error->code())) try_afterwards(*group);
    }
    record_.num_descriptors_left = num_open_descriptors() - descriptors_before;
    if (error) throw Error(*error);
  }

 private:
  void enter(Stage stage) {
    record_.stage = stage;
    record_.counts_before[static_cast<std::size_t>(stage)] = system_call_counts();
    if (options_.on_stage) options_.on_stage(info_.rank, stage);
  }

  void note_fault() {
    stop_watching();
    record_.fault_hit = fault_was_hit();
    record_.sent_before_fault = had_sent_before_fault();
  }

  void play(Group& group) {
    enter(Stage::kCreate);
    const Scenario small = staged_scenario(info_.num_ranks, 1);
    Subject exact(group, "direct", small.config);
    enter(Stage::kRoundTrip);
    check(round_trip(exact, Round(small, 0)));
    enter(Stage::kGrow);
    check(round_trip(exact, Round(staged_scenario(info_.num_ranks, 30), 1)));
    enter(Stage::kCreateMore);
    const Scenario capacity = capacity_scenario(info_.num_ranks);
    Subject second(group, "alltoall", capacity.config);
    enter(Stage::kGather);
    check_gather(group);
    enter(Stage::kLastRoundTrip);
    check(round_trip(second, Round(capacity, 2)));
    group.barrier();
    enter(Stage::kLeave);
  }

  /// What is documented: after an error that does not break the group it can be used on.
  void try_afterwards(Group& group) {
    record_.tried_afterwards = true;
    const Outcome outcome = outcome_of([&] {
      check_gather(group);
      const Scenario scenario = staged_scenario(info_.num_ranks, 3);
      Subject subject(group, "direct", scenario.config);
      check(round_trip(subject, Round(scenario, 3)));
    });
    if (!outcome) return;
    record_.afterwards = outcome->code();
    std::strncpy(record_.note, outcome->what(), sizeof(record_.note) - 1);
  }

  const StagedRanks::Options& options_;
  const LaunchInfo info_;
  StagedRecord& record_;
};

/// What is wrong with the rank that came to its end, whatever the fault was.
std::string judge_leftovers(const ChildReport& report, const StagedRecord& record) {
  if (report.has_shared_memory) return "shared memory is left in it";
  if (record.num_descriptors_left != 0) return fmt::format("{} descriptors are left", record.num_descriptors_left);
  if (record.tried_afterwards && record.afterwards != ErrorCode::kOk) {
    return fmt::format("the group could not be used on: {}", record.note);
  }
  return {};
}

struct Ended {
  int rank;
  bool threw;
  ErrorCode code;
  int peer_rank;
};

std::string judge_ends(StagedRanks& ranks, const StagedRanks::Options& options, int except, std::vector<Ended>& ends) {
  if (std::string problem = ranks.wait_for_all(except); !problem.empty()) return problem;
  for (int rank = 0; rank < options.num_ranks; ++rank) {
    if (rank == except) continue;
    const ChildReport& report = ranks.children().report(static_cast<std::size_t>(rank));
    if (const std::string left = judge_leftovers(report, ranks.record(rank)); !left.empty()) {
      return fmt::format("rank {}: {}", rank, left);
    }
    ends.push_back({rank, report.threw, report.code, report.peer_rank});
  }
  if (const auto named = named_shared_memory(); !named.empty()) return "left in /dev/shm: " + named.front();
  return {};
}

/// All of `ends` must have the same outcome: no error, or the same one, which names `victim`.
std::string judge_same(const std::vector<Ended>& ends, int victim) {
  for (const Ended& end : ends) {
    if (end.threw != ends.front().threw || end.code != ends.front().code) return "the ranks end differently";
    if (end.threw && end.peer_rank != victim) {
      return fmt::format("rank {} names rank {} instead of {}", end.rank, end.peer_rank, victim);
    }
  }
  return {};
}

/// Without rank 0 the others never meet: each tells by itself that it is gone, or did not come, but for those that it
/// has `told` more.
bool are_missing_rank_0(const std::vector<Ended>& others, const StagedRanks::Options& options,
                        const StagedRecord& record, ErrorCode told = ErrorCode::kPeerLost) {
  return options.victim == 0 && record.stage == Stage::kJoin &&
         std::all_of(others.begin(), others.end(), [told](const Ended& end) {
           return end.threw && end.peer_rank == 0 && (end.code == told || breaks_the_group(end.code));
         });
}

bool is_failure_of_its_own(ErrorCode code) {
  return code == ErrorCode::kSystem || code == ErrorCode::kOutOfMemory || code == ErrorCode::kUnsupported;
}

}  // namespace

std::string to_text(Stage stage) {
  constexpr const char* kNames[kNumStages] = {"join",        "create", "round trip",      "grow",
                                              "create more", "gather", "last round trip", "leave"};
  return kNames[static_cast<std::size_t>(stage)];
}

StagedRanks::StagedRanks(const Options& options)
    : options_(options),
      records_(static_cast<std::size_t>(options.num_ranks)),
      statuses_(static_cast<std::size_t>(options.num_ranks), -1) {
  const std::string job = unique_job();
  std::vector<ReportingChildren::Body> bodies;
  for (int rank = 0; rank < options.num_ranks; ++rank) {
    const LaunchInfo info{.rank = rank, .num_ranks = options.num_ranks, .job = job};
    bodies.emplace_back([this, info](ChildReport&) {
      StagedRecord& record = records_[static_cast<std::size_t>(info.rank)];
      try {
        StagedRank(options_, info, record).run();
      } catch (const Error&) {
        throw;
      } catch (const std::exception& wrong) {
        std::strncpy(record.note, wrong.what(), sizeof(record.note) - 1);
        ::_exit(kThrewExit);
      }
    });
  }
  children_ = std::make_unique<ReportingChildren>(bodies);
}

std::string StagedRanks::wait_for_all(int except) {
  const std::chrono::milliseconds patience = options_.timeout * 2 + kStageSlack;
  std::string problem;
  for (int rank = 0; rank < options_.num_ranks; ++rank) {
    if (rank == except) continue;
    const auto idx = static_cast<std::size_t>(rank);
    statuses_[idx] = children_->wait(idx, patience);
    if (statuses_[idx] == 0 || !problem.empty()) continue;
    if (statuses_[idx] == -1) {
      problem = fmt::format("rank {} does not end", rank);
    } else if (WIFSIGNALED(statuses_[idx])) {
      problem = fmt::format("rank {} died of signal {}", rank, WTERMSIG(statuses_[idx]));
    } else {
      problem = fmt::format("rank {} exited with {}: {}", rank, WEXITSTATUS(statuses_[idx]), record(rank).note);
    }
  }
  return problem;
}

std::string StagedRanks::describe() const {
  std::string text;
  for (int rank = 0; rank < options_.num_ranks; ++rank) {
    const ChildReport& report = children_->report(static_cast<std::size_t>(rank));
    text += fmt::format("\n    rank {} in {}, {} ms: {}", rank, to_text(record(rank).stage), report.took_ms,
                        report.threw ? fmt::format("{} (peer {}) {}", to_string(report.code), report.peer_rank,
                                                   static_cast<const char*>(report.message))
                                     : std::string(report.returned ? "no error" : "did not return"));
  }
  return text;
}

std::string judge_fault(StagedRanks& ranks, const StagedRanks::Options& options, bool must_succeed) {
  std::vector<Ended> ends;
  if (std::string problem = judge_ends(ranks, options, -1, ends); !problem.empty()) return problem;
  const Ended own = ends[static_cast<std::size_t>(options.victim)];
  std::vector<Ended> others = ends;
  others.erase(others.begin() + options.victim);
  if (must_succeed) {
    for (const Ended& end : ends) {
      if (end.threw) return "a call that only has to be made again ended the group";
    }
    return {};
  }
  const StagedRecord& record = ranks.record(options.victim);
  // A rank that cannot speak is only missed by the others.
  const bool forever = options.fault.fault == CallFault::kErrorForever;
  const bool cannot_meet = forever && options.fault.call == SystemCall::kAccept;
  const bool is_dumb = !record.sent_before_fault || (forever && options.fault.call == SystemCall::kSend);
  const bool failed_alone = (is_dumb || cannot_meet) && own.threw && is_failure_of_its_own(own.code);
  if (failed_alone && are_missing_rank_0(others, options, record, own.code)) return {};
  if (std::string problem = judge_same(others, options.victim); !problem.empty()) return problem;
  if (own.threw != others.front().threw) return "only some ranks throw";
  if (own.code == others.front().code) return {};
  if (failed_alone && breaks_the_group(others.front().code)) return {};
  return "the rank with the fault throws another error than the others";
}

std::string judge_survivors(StagedRanks& ranks, const StagedRanks::Options& options) {
  std::vector<Ended> ends;
  if (std::string problem = judge_ends(ranks, options, options.victim, ends); !problem.empty()) return problem;
  std::string problem = judge_same(ends, options.victim);
  if (!problem.empty() && are_missing_rank_0(ends, options, ranks.record(0))) return {};
  if (problem.empty() && ends.front().threw && !breaks_the_group(ends.front().code)) {
    return "a rank that is gone is kPeerLost or kTimeout";
  }
  return problem;
}

}  // namespace epistle::testing
