// What dispatchers need of a group: symmetric regions, collective steps with failure detection, and one failure that
// all ranks agree on.
//
// All collective steps of a group, those of its dispatchers included, go through one barrier. Whoever arrives in it
// says what it is about to do; when the barrier has passed, every rank compares what all have said with what rank 0
// has said, and so all come to the same verdict.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "epistle/error.hpp"
#include "epistle/types.hpp"

#include "core/complaint.hpp"
#include "group/agreed_error.hpp"
#include "group/barrier.hpp"
#include "group/call_post.hpp"
#include "group/control.hpp"
#include "group/domain_link.hpp"
#include "group/domains.hpp"
#include "group/rank_mask.hpp"
#include "group/shared_memory.hpp"
#include "group/world.hpp"
#include "topology/memory.hpp"

namespace epistle {

/// How a group stands: kOk, or why it is broken and which rank is at fault.
struct GroupHealth {
  ErrorCode code = ErrorCode::kOk;
  int peer_rank = -1;
};

/// How many rows the peer still owed, for the error message; -1 = not known.
using MissingRows = std::function<std::int64_t(int peer_rank)>;

class GroupImpl {
 public:
  /// Collective. `timeout` is one of resolve_timeout().
  GroupImpl(std::shared_ptr<World> world, int rank, int num_ranks, std::chrono::milliseconds timeout);
  ~GroupImpl();
  GroupImpl(const GroupImpl&) = delete;
  GroupImpl& operator=(const GroupImpl&) = delete;

  [[nodiscard]] int rank() const noexcept { return rank_; }
  [[nodiscard]] int num_ranks() const noexcept { return num_ranks_; }
  [[nodiscard]] GroupKind kind() const noexcept { return world_->kind(); }
  [[nodiscard]] std::chrono::milliseconds timeout() const noexcept { return timeout_; }
  /// Ranks that reach each other by load and store: their host memory, and the memory of their GPUs.
  [[nodiscard]] const Domains& domains() const noexcept { return domains_; }
  [[nodiscard]] const Domains& gpu_domains() const noexcept { return gpu_domains_; }

  /// Once, before anything else is done with the group. Collective in a process group: all ranks must declare the same
  /// (see resolve_domain_size).
  void form_domains(int declared_size);

  // ---- Collective steps ---------------------------------------------------------------------------------------------

  /// Says what this rank is about to do, and waits until all ranks have. Throws, on all ranks alike: the complaint of a
  /// rank that has one (itself throws that one; the others kPeerRejected, or the same code where the rank ran out of
  /// memory or met a system error), kShapeMismatch where ranks are about to do different things. Nothing has happened
  /// then, and the group can be used on. Returns the value that the ranks agree on.
  /// `missing_rows`: what the others owe in the call, also where they fail in a later step of it.
  std::int64_t agree(const Call& call, Phase phase, const Complaint& complaint = std::nullopt,
                     const MissingRows* missing_rows = nullptr);

  /// Which buffer `peer` has announced in the step that this rank waited for last; until it arrives again.
  [[nodiscard]] std::int32_t announced_buffer(int peer) const noexcept;
  [[nodiscard]] Ticket last_step() const noexcept { return last_waited_; }

  /// The two halves of a step: between them other ranks may still be on their way, and this one may take other steps.
  /// wait() throws as agree() does, also where a later step has waited for this one already.
  Ticket arrive(const Call& call);
  void wait(Ticket ticket, Phase phase, const MissingRows* missing_rows = nullptr);

  /// A step that every rank takes alone, inside which there may be other steps: returns when all have come through it,
  /// and throws on all ranks what one has thrown.
  template <typename Work>
  void take_together(const Call& call, Phase phase, Work&& work) {
    bool all_know = false;
    const Complaint complaint = attempt([&] {
      try {
        std::forward<Work>(work)();
      } catch (const AgreedError&) {
        all_know = true;
        throw;
      }
    });
    if (all_know) throw AgreedError(*complaint);
    (void)agree(call, phase, complaint);
  }

  /// The step that this rank takes next. Between the same two calls it is the same on all ranks, so it tells them the
  /// time. Who is about to take one after it has waited for all steps before it.
  [[nodiscard]] Ticket next_ticket() const noexcept { return barrier_.next_ticket(); }

  void barrier(Phase phase = Phase::kBarrier);
  void all_gather(const void* input, std::size_t num_bytes, void* output, Phase phase = Phase::kBarrier);
  /// What every rank has found on its own, by rank, once all have come here without a complaint; otherwise all throw,
  /// as in agree(). Ranks that are masked out have found what the first of the others has.
  template <typename Facts>
  [[nodiscard]] std::vector<Facts> gather(const Call& call, Phase phase, const Facts& own,
                                          const Complaint& complaint = std::nullopt) {
    static_assert(std::is_trivially_copyable_v<Facts>);
    std::vector<Facts> all(static_cast<std::size_t>(num_ranks_));
    gather_bytes(call, phase, {.input = &own, .num_bytes = sizeof(own), .output = all.data()}, complaint);
    for (int peer = 0; peer < num_ranks_; ++peer) {
      if (is_masked(peer)) all[static_cast<std::size_t>(peer)] = all[static_cast<std::size_t>(first_member())];
    }
    return all;
  }

  /// Collective. `reserved_bytes` must be equal on all ranks.
  [[nodiscard]] SymmetricRegion create_region(std::int64_t reserved_bytes);

  /// Collective: this rank's link to ranks of other domains, for `region`. In a process group `region` itself reaches
  /// them no longer, as if they were on other hosts.
  [[nodiscard]] std::unique_ptr<DomainLink> open_link(const SymmetricRegion& region);

  /// Collective: every rank gives a valid descriptor and receives a copy of that of every rank of its host, in rank
  /// order; those of ranks elsewhere are invalid. A rank that is lost or does not come breaks the group. Throws
  /// kUnsupported in a thread group.
  [[nodiscard]] std::vector<UniqueFd> exchange_fds(const UniqueFd& own);

  /// Collective, before memory is taken: asks whether the machine has `num_bytes` for this rank and what the others
  /// ask for at the same time. Throws kOutOfMemory, with the numbers, on all ranks.
  void ask_for_memory(std::int64_t num_bytes, Phase phase);

  [[nodiscard]] int num_hosts() const noexcept { return world_->num_hosts(); }
  /// Hosts are numbered by the lowest of their ranks. Ranks of one host have each other's regions.
  [[nodiscard]] int host_of(int rank) const noexcept { return world_->host_of(rank); }

  /// Of this host, towards the others; empty where there are none.
  [[nodiscard]] std::string host_address() const { return world_->host_address(); }

  /// Regions that were created so far: the same on all ranks.
  [[nodiscard]] int num_regions() const noexcept { return num_regions_; }

  // ---- Masks
  // ----------------------------------------------------------------------------------------------------------

  /// See Group::set_mask(). What was made before the mask changed is to be made anew: regions, for a rank that is
  /// masked out may still write there; counts of calls, for a failure leaves some ranks one call ahead of others.
  void set_mask(std::vector<int> masked);
  [[nodiscard]] bool is_masked(int rank) const noexcept { return mask_.has(rank); }
  [[nodiscard]] std::vector<int> masked_ranks() const { return mask_.ranks(); }
  /// The lowest rank that is not masked out.
  [[nodiscard]] int first_member() const noexcept { return mask_.first_member(); }
  /// Another number after every change; 0 before the first.
  [[nodiscard]] std::uint64_t mask_version() const noexcept { return quiet_.load(std::memory_order_relaxed); }

  // ---- Failures -----------------------------------------------------------------------------------------------------

  /// Throws the group's failure if it is broken.
  void check_usable(const MissingRows* missing_rows = nullptr) const;
  /// Whether that would throw. Looks at nothing but one word.
  [[nodiscard]] bool failed() const noexcept;

  /// For ranks that watch each other by other means than these steps: breaks the group, as wait() does, and throws its
  /// failure. That is the first one anybody reported, so it may name another rank than `peer_rank`, which is a rank of
  /// the group.
  [[noreturn]] void fail(ErrorCode code, Phase phase, int peer_rank, const MissingRows* missing_rows = nullptr);
  /// The same where a rank is lost, of itself or with its host.
  void fail_if_lost(Phase phase, const MissingRows* missing_rows = nullptr);

  /// A rank other than this one that has left the group or whose process has ended; -1 = none. What that rank did
  /// before it went may still be on its way to the caller: look for it once more before calling fail().
  [[nodiscard]] int find_lost_rank() const noexcept;

  /// The failure that was agreed on, or a rank that is lost. Waits for nothing.
  [[nodiscard]] GroupHealth health() const noexcept;

  /// All ranks that are lost, this one left out.
  [[nodiscard]] std::vector<int> lost_ranks() const;
  /// The ranks that health() speaks of: the one at fault, or all that are lost.
  [[nodiscard]] std::vector<int> suspects() const;

  /// Breaks the group on purpose: every wait of every rank ends with kAborted, which names this rank. From any thread.
  void abort() noexcept;

  /// This rank takes part no longer: ranks that wait for it see kPeerLost at once.
  void depart() noexcept;

 private:
  /// A step that the ranks do not agree on, while nobody here has waited for it.
  struct RefusedStep {
    Ticket ticket;
    Error error;
  };

  struct GatherBuffers {
    const void* input;  ///< of this rank
    std::size_t num_bytes;
    void* output;  ///< [num_ranks, num_bytes]
  };
  void gather_bytes(const Call& call, Phase phase, const GatherBuffers& buffers, const Complaint& complaint);
  void attach(SymmetricRegion region);
  void wait_until_founded();
  void check_memory_of(int host, const std::vector<std::int64_t>& needed_by_rank,
                       const std::vector<AvailableMemory>& seen, Phase phase) const;
  [[noreturn]] void fail_founding(ErrorCode code, int peer_rank, const Complaint& complaint);
  [[nodiscard]] RankControl& rank_control(int rank) const noexcept { return control_.rank(rank); }
  [[nodiscard]] bool is_lost(int rank) const noexcept;
  [[nodiscard]] std::optional<GroupFailure> agreed_failure() const noexcept;
  [[nodiscard]] GroupFailure seen_from_here(const GroupFailure& failure) const noexcept;
  [[nodiscard]] GroupFailure decide(GroupFailure failure) const noexcept;
  [[nodiscard]] GroupFailure agree_on(const GroupFailure& failure) const noexcept;
  [[nodiscard]] int speaker_of(int rank) const noexcept;
  [[nodiscard]] GroupFailure loss_of(int rank, Phase phase) const noexcept;
  [[noreturn]] void raise(const GroupFailure& failure, const MissingRows* missing_rows) const;
  [[nodiscard]] std::optional<GroupFailure> look_for_lost_ranks(Ticket ticket, Phase phase,
                                                                int& next_look) const noexcept;

  Ticket arrive(const Call& call, const Complaint& complaint);
  /// Waits for a step on behalf of the next one, and keeps what was found for who calls wait().
  void settle_open_step();
  void throw_settled(Ticket ticket, Phase phase);
  /// Of a step: what a rank owes that has not come to it, and one that has but may not come to the next.
  struct OwedRows {
    const MissingRows* before = nullptr;
    const MissingRows* behind = nullptr;
  };
  void wait_for_all(Ticket ticket, Phase phase, const OwedRows& owed);
  /// What a waiting rank has seen of the uplink of its host.
  struct UplinkWatch {
    std::uint32_t beats = 0;
    std::chrono::steady_clock::time_point last_beat;
  };
  [[nodiscard]] bool uplink_stands_still(UplinkWatch& uplink, std::chrono::steady_clock::time_point now) const noexcept;
  /// Whether this rank waits for ranks of other hosts, and the one that carries their news has ended.
  [[nodiscard]] bool uplink_has_ended(Ticket ticket) const noexcept;
  void wait_and_look(Ticket ticket, Phase phase, const OwedRows& owed);
  [[nodiscard]] int find_late_rank(Ticket ticket) const noexcept;
  void throw_refusals(Ticket ticket, Phase phase, const Complaint& complaint) const;
  std::int64_t compare_posts(Ticket ticket, Phase phase, const Complaint& complaint) const;
  /// The end of a step that every rank took alone: all have come through it, or all throw.
  void conclude(const Call& call, const Complaint& complaint);
  /// Where ranks meet no more, since those that they met at may be masked out.
  [[nodiscard]] bool fetches_descriptors() const noexcept {
    return mask_version() != 0 && world_->kind() != GroupKind::kThreads;
  }
  [[nodiscard]] SymmetricRegion create_region_of_members(std::int64_t reserved_bytes);
  [[nodiscard]] std::vector<UniqueFd> fetch_descriptors(const UniqueFd& own, const Complaint& complaint);
  [[nodiscard]] std::vector<UniqueFd> mail_descriptors(const UniqueFd& own);
  struct MaskChange;
  [[nodiscard]] std::uint16_t mask_number_of_group() const noexcept;
  void check_connection(const MaskChange& change) const;
  /// The lowest rank of this host that is not masked out.
  [[nodiscard]] int first_member_here() const noexcept;
  void propose(MaskChange& change) noexcept;
  void withdraw(const MaskChange& change) noexcept;
  [[nodiscard]] bool all_propose(const MaskChange& change) const noexcept;
  [[nodiscard]] bool commit(const MaskChange& change) noexcept;
  [[nodiscard]] bool await_mask(MaskChange& change);
  [[nodiscard]] bool may_come_back(int rank) const noexcept;
  [[nodiscard]] int find_differing(const MaskChange& change) const noexcept;
  [[nodiscard]] bool proposes(int rank, std::uint16_t number) const noexcept;
  [[nodiscard]] bool has_come_to_count(const MaskChange& change) const noexcept;
  [[nodiscard]] bool is_deadlocked(const MaskChange& change) const noexcept;
  [[nodiscard]] bool meet_other_calls(const MaskChange& change);
  [[noreturn]] void refuse_mask(const Error& complaint);
  [[noreturn]] void throw_missing(const MaskChange& change, int differing) const;
  void adopt(const MaskChange& change) noexcept;
  [[nodiscard]] Watch watch() const;

  std::shared_ptr<World> world_;
  int rank_;
  int num_ranks_;
  Domains domains_;
  std::chrono::milliseconds timeout_;
  std::chrono::microseconds spin_;
  std::int64_t look_interval_us_;
  int num_regions_ = 0;
  ControlView control_;
  RankMask mask_;
  std::atomic<std::uint64_t> quiet_{0};  ///< quiet_word() of the mask that this rank knows
  std::uint32_t num_mask_attempts_ = 0;
  Barrier barrier_;
  Ticket last_waited_ = 0;
  std::vector<RefusedStep> refused_steps_;
  Domains gpu_domains_;
};

}  // namespace epistle
