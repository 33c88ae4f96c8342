// Live migration: the weights of experts, kept where all ranks of a group reach them, and moved to other ranks in the
// background while dispatch goes on.
//
//   WeightStore store(group, config);             // collective; then every rank fills weights(slot) of its own slots
//   store.begin(new_slot_experts);                // collective: one agreement, and a thread begins to copy
//   for (;;) {
//     if (store.advance()) use(store.placement());  // between two steps, on every rank: waits for nothing
//     ...                                          // a step: dispatch, experts, combine
//   }
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "epistle/config.hpp"
#include "epistle/export.hpp"
#include "epistle/group.hpp"
#include "epistle/placement.hpp"
#include "epistle/stream.hpp"
#include "epistle/types.hpp"

namespace epistle {

/// Equal on all ranks.
struct WeightStoreConfig {
  std::int32_t num_experts = 0;
  std::int64_t expert_bytes = 0;  ///< weights of one expert
  /// For every rank the expert of each slot, kNoExpert where it holds none: the placement to begin with.
  std::vector<std::vector<std::int32_t>> slot_experts = {};
  std::vector<std::int32_t> domain_of_rank =
      {};  ///< empty = all in one; weights come from the own domain where they can
  /// Places of every rank besides its slots, where weights arrive. At least 2: experts that take each other's last slot
  /// in a ring wait in one of them. A migration that brings more experts to a rank than it has places takes more
  /// rounds.
  std::int32_t spare_slots = 2;
  std::int64_t chunk_bytes = 256 * 1024;  ///< copied at a time; a cancelled migration stops after one
  std::int64_t max_bytes_per_s = 0;       ///< into one rank; 0 = no limit
  /// The copying thread runs only where a core has nothing else to do. Otherwise as other threads do.
  bool low_priority = true;
  /// Above 0: no thread, and advance() copies so much before it looks whether to switch. So nothing competes with a
  /// step, on machines that have no core to spare as well; advance() takes as long as the copy (1 MiB: some 0.1 ms).
  /// Not for weights on a GPU, which its copy engines move.
  std::int64_t bytes_per_advance = 0;
};

enum class MigrationState : std::int32_t {
  kIdle,       ///< none was begun
  kCopying,    ///< weights travel; the placement is the one before, or that of the last round which is complete
  kDone,       ///< the wanted placement is in force
  kCancelled,  ///< a rank has cancelled it, or is lost: the placement before its last round stays in force everywhere
};

struct MigrationStatus {
  MigrationState state = MigrationState::kIdle;
  std::int32_t num_rounds = 0;  ///< switches that the migration takes
  std::int32_t rounds_done = 0;
  std::int64_t bytes_into_rank = 0;  ///< what comes to this rank, all rounds together
  std::int64_t bytes_copied = 0;     ///< of these
};

/// The experts' weights of one layer. Calls of a rank come from one thread at a time; the group's rules apply. The
/// group must outlive the store.
///
/// How a migration goes: every rank pulls what it needs, in the order of the planner's copies, into spare places; no
/// place that is in use is written to. When all have everything, all ranks switch at the same advance(): which one is
/// announced by rank 0 a collective step ahead, so that all know without waiting. The switch is decided by one word in
/// shared memory: either for all ranks or for none, whenever a rank dies.
///
/// On GPUs each rank's copy engines pull, on a stream of the lowest priority; a thread hands them one chunk after the
/// other, and sleeps meanwhile. Hosts run ahead of kernels and take no collective step for a call, so ranks count the
/// calls of advance() instead: rank 0 proposes one that is to come, and the switch is made there if all ranks have seen
/// that in time; otherwise another is proposed.
class EPISTLE_API WeightStore {
 public:
  /// Collective. With CudaOptions weights lie in memory of the ranks' GPUs (CudaOptions::device; nothing else of them
  /// counts). Throws kInvalidArgument, kShapeMismatch where ranks give different configurations or devices,
  /// kOutOfMemory, kUnsupported where there is no such device.
  WeightStore(Group& group, const WeightStoreConfig& config, const DeviceOptions& options = HostOptions{});
  ~WeightStore();
  WeightStore(WeightStore&&) noexcept;
  WeightStore& operator=(WeightStore&&) noexcept;
  WeightStore(const WeightStore&) = delete;
  WeightStore& operator=(const WeightStore&) = delete;

  /// The placement in force: slots that hold nothing are left out. It has a generation.
  [[nodiscard]] const Placement& placement() const noexcept;
  /// Weights in slot `local_slot` of this rank in placement(), expert_bytes of them. Stays valid until a later
  /// placement no longer has the expert here. May be written to while no migration runs. On CUDA: device memory; what
  /// is written on a stream must have arrived when begin() is called, and calls that are on their stream when advance()
  /// switches may still read what was valid before.
  [[nodiscard]] std::span<std::byte> weights(std::int32_t local_slot) const;

  /// Collective: begins to move weights, so that slots hold `slot_experts` (as many slots as now). Throws
  /// kInvalidArgument where that is no placement or a migration runs already, kShapeMismatch where ranks want different
  /// ones; nothing is moved then. Returns false where nothing is to be done.
  bool begin(const std::vector<std::vector<std::int32_t>>& slot_experts);

  /// Between two steps, at the same places on all ranks: makes the next placement the one in force when all ranks have
  /// all its weights. Waits for nothing, and copies only with bytes_per_advance; true when the placement has changed.
  /// After a failure of the group it throws that, having done what settle() does. Between the last copy and the switch
  /// lie two collective steps of the group; on CUDA, two calls of advance() or more. There `stream` is that of the
  /// steps, not being captured: weights that it may still read are not written to before it has come to the switch.
  /// Throws what has gone wrong with a copy; the placement stays then.
  bool advance(Stream stream = {});

  /// Ends the migration unless its round is decided already; false where it is, or none runs. One rank is enough: the
  /// others see it in advance().
  bool cancel() noexcept;

  /// After the group has failed (a call threw kPeerLost, kTimeout or kAborted): all survivors that call it have the
  /// same placement afterwards, the one before unless all had decided to switch, and all its weights on their slots.
  /// Throws kInvalidArgument while the group is sound.
  void settle();

  [[nodiscard]] MigrationStatus status() const noexcept;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace epistle
