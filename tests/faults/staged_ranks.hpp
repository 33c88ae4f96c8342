// Ranks that go through every collective step of the library once, one of which meets a fault; and what must become of
// them: all of them succeed, or all of them throw the same error.
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "epistle/error.hpp"

#include "faults/system_calls.hpp"
#include "multiprocess/reporting_children.hpp"
#include "support/shared_array.hpp"

namespace epistle::testing {

enum class Stage {
  kJoin,
  kCreate,      ///< a dispatcher of exact sizing
  kRoundTrip,   ///< a small one
  kGrow,        ///< a larger one, for which memory is committed
  kCreateMore,  ///< a second dispatcher, of capacity sizing
  kGather,      ///< 1 MB from every rank
  kLastRoundTrip,
  kLeave,
};
inline constexpr std::size_t kNumStages = 8;

[[nodiscard]] std::string to_text(Stage stage);

/// What a rank leaves behind besides its ChildReport.
struct StagedRecord {
  Stage stage = Stage::kJoin;                        ///< where it got to
  std::array<CallCounts, kNumStages> counts_before;  ///< its system calls when a stage began
  bool fault_hit = false;
  bool sent_before_fault = false;
  bool tried_afterwards = false;  ///< the group, after an error that leaves it usable
  ErrorCode afterwards = ErrorCode::kOk;
  int num_descriptors_left = 0;
  char note[240] = {};  ///< a wrong result, or what is left
};

/// Ranks of one group as processes; rank `victim` gets `fault`.
class StagedRanks {
 public:
  struct Options {
    int num_ranks = 3;
    int victim = -1;
    SystemCallFault fault = {};
    /// Longer than any of these ranks is kept from going on by a busy machine.
    std::chrono::milliseconds timeout{30'000};
    /// Called in every rank when a stage begins.
    std::function<void(int rank, Stage stage)> on_stage = {};
  };

  explicit StagedRanks(const Options& options);

  [[nodiscard]] ReportingChildren& children() noexcept { return *children_; }
  [[nodiscard]] const StagedRecord& record(int rank) const { return records_[static_cast<std::size_t>(rank)]; }
  /// Waits for every rank but `except`; says what is wrong with one that does not come to its end.
  [[nodiscard]] std::string wait_for_all(int except = -1);
  /// One line per rank, for a failed expectation.
  [[nodiscard]] std::string describe() const;

 private:
  Options options_;
  SharedArray<StagedRecord> records_;
  std::unique_ptr<ReportingChildren> children_;
  std::vector<int> statuses_;
};

/// True for the errors after which a group cannot be used on (include/epistle/group.hpp).
[[nodiscard]] inline bool breaks_the_group(ErrorCode code) {
  return code == ErrorCode::kPeerLost || code == ErrorCode::kTimeout || code == ErrorCode::kAborted;
}

/// Nothing where the ranks behaved, otherwise what they did wrong. That somebody waited too long shows by kTimeout, or
/// in that it does not end at all: how long the machine took for it is not looked at.
[[nodiscard]] std::string judge_fault(StagedRanks& ranks, const StagedRanks::Options& options, bool must_succeed);
/// The same for a victim that was killed or stopped, and does not report.
[[nodiscard]] std::string judge_survivors(StagedRanks& ranks, const StagedRanks::Options& options);

}  // namespace epistle::testing
