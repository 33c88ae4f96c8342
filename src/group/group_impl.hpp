// What dispatchers need of a group: symmetric regions, barriers with failure detection, and one failure that all ranks
// agree on.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "epistle/error.hpp"
#include "epistle/types.hpp"

#include "group/barrier.hpp"
#include "group/shared_memory.hpp"

namespace epistle {

/// How the pieces of a region come together, and how ranks are watched. One implementation per group kind.
class World {
 public:
  virtual ~World() = default;
  [[nodiscard]] virtual GroupKind kind() const noexcept = 0;
  /// Collective: `rank`'s `region_idx`-th region, of `reserved_bytes` per rank.
  [[nodiscard]] virtual SymmetricRegion create_region(int rank, int region_idx, std::int64_t reserved_bytes,
                                                      std::chrono::milliseconds timeout) = 0;
  /// Collective: a copy of every rank's descriptor, in rank order. Throws kUnsupported where the ranks share one
  /// process, and have no need of it.
  [[nodiscard]] virtual std::vector<UniqueFd> exchange_fds(const UniqueFd& own, std::chrono::milliseconds timeout) = 0;
  /// False once `rank` can never arrive again because its process has ended.
  [[nodiscard]] virtual bool is_alive(int rank) const noexcept = 0;
};

/// How many rows the peer still owed, for the error message; -1 = not known.
using MissingRows = std::function<std::int64_t(int peer_rank)>;

class GroupImpl {
 public:
  GroupImpl(std::shared_ptr<World> world, int rank, int num_ranks, std::chrono::milliseconds timeout);
  ~GroupImpl();
  GroupImpl(const GroupImpl&) = delete;
  GroupImpl& operator=(const GroupImpl&) = delete;

  [[nodiscard]] int rank() const noexcept { return rank_; }
  [[nodiscard]] int num_ranks() const noexcept { return num_ranks_; }
  [[nodiscard]] GroupKind kind() const noexcept { return world_->kind(); }
  [[nodiscard]] std::chrono::milliseconds timeout() const noexcept { return timeout_; }

  /// Collective. `reserved_bytes` must be equal on all ranks.
  [[nodiscard]] SymmetricRegion create_region(std::int64_t reserved_bytes);

  /// Collective: every rank gives a valid descriptor and receives a copy of every rank's, in rank order. A rank that is
  /// lost or does not come breaks the group. Throws kUnsupported in a thread group.
  [[nodiscard]] std::vector<UniqueFd> exchange_fds(const UniqueFd& own);

  /// Waits for the generation of `barrier` this rank has arrived in. Throws kPeerLost or kTimeout that names the rank
  /// at fault, the same on all ranks, and marks the group broken.
  void wait(Barrier& barrier, Phase phase, const MissingRows* missing_rows = nullptr);

  void barrier(Phase phase = Phase::kBarrier);
  void all_gather(const void* input, std::size_t num_bytes, void* output, Phase phase = Phase::kBarrier);

  /// Throws the group's failure if it is broken.
  void check_usable() const;

  /// For ranks that watch each other by other means than a Barrier: breaks the group, as wait() does, and throws its
  /// failure. That is the first one anybody reported, so it may name another rank than `peer_rank`, which is a rank of
  /// the group.
  [[noreturn]] void fail(ErrorCode code, Phase phase, int peer_rank, const MissingRows* missing_rows = nullptr);

  /// A rank other than this one that has left the group or whose process has ended; -1 = none. What that rank did
  /// before it went may still be on its way to the caller: look for it once more before calling fail().
  [[nodiscard]] int find_lost_rank() const noexcept;

  /// This rank takes part no longer: ranks that wait for it see kPeerLost at once.
  void depart() noexcept;

 private:
  struct Failure;
  struct GroupControl;
  struct RankControl;

  [[nodiscard]] RankControl& rank_control(int rank) const noexcept;
  [[nodiscard]] bool is_lost(int rank) const noexcept;
  [[nodiscard]] std::byte* gather_slot(int rank, std::uint64_t generation) const noexcept;
  [[nodiscard]] std::optional<Failure> agreed_failure() const noexcept;
  [[nodiscard]] Failure agree_on(const Failure& failure) noexcept;
  [[noreturn]] void raise(const Failure& failure, const MissingRows* missing_rows) const;
  [[nodiscard]] std::optional<Failure> look_for_lost_ranks(const Barrier& barrier, Phase phase) const noexcept;
  [[nodiscard]] std::int64_t control_bytes() const noexcept;

  std::shared_ptr<World> world_;
  int rank_;
  int num_ranks_;
  std::chrono::milliseconds timeout_;
  std::chrono::microseconds spin_;
  int num_regions_ = 0;
  SymmetricRegion control_region_;
  GroupControl* control_ = nullptr;
  Barrier barrier_;
  std::uint64_t gather_generation_ = 0;
};

}  // namespace epistle
