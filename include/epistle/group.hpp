// EP groups: the ranks that share one set of experts.
#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "epistle/export.hpp"
#include "epistle/types.hpp"

namespace epistle {

class GroupImpl;

struct GroupOptions {
  /// Longest wait for another rank in any one step; more than 24 days count as 24 days. 0 = the setting
  /// EPISTLE_TIMEOUT_MS (30 s unless set). Negative: kInvalidArgument.
  std::chrono::milliseconds timeout{0};
  /// Ranks of a domain: blocks of ranks that reach each other by load and store, in rank order, all of one size. Equal
  /// on all ranks. 0 = the setting EPISTLE_DOMAIN_SIZE; where that is 0 too, what is found: all ranks of one host, and
  /// of GPUs those of all hosts in one NVLink fabric. Less than that can be declared, so that several domains are
  /// played on one host. kInvalidArgument where it does not divide the number of ranks, kShapeMismatch where it
  /// differs.
  int domain_size = 0;
};

/// One rank's membership of an EP group. Collective calls must be made by every rank in the same order; a rank's own
/// calls come from one thread at a time. After a kPeerLost or kTimeout error the group is broken: every later
/// collective call throws the same error at once. After any other error nothing was sent and the group can be used on:
/// ranks that make different calls at once all throw kShapeMismatch, one that cannot take part is named on all. A
/// broken group can go on without the ranks at fault: set_mask.
class EPISTLE_API Group {
 public:
  explicit Group(std::shared_ptr<GroupImpl> impl);
  ~Group();
  Group(Group&&) noexcept;
  Group& operator=(Group&&) noexcept;
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;

  [[nodiscard]] int rank() const noexcept;
  [[nodiscard]] int size() const noexcept;
  [[nodiscard]] GroupKind kind() const noexcept;
  [[nodiscard]] std::chrono::milliseconds timeout() const noexcept;
  /// The domains of this group, and where a rank stands: rank = domain * domain_size() + index.
  [[nodiscard]] int domain_size() const noexcept;
  [[nodiscard]] int num_domains() const noexcept;
  [[nodiscard]] int domain_of(int rank) const noexcept;
  /// The same of GPUs: more than domain_size() where hosts are in one NVLink fabric, over which their GPUs share
  /// memory.
  [[nodiscard]] int gpu_domain_size() const noexcept;
  [[nodiscard]] int index_in_domain(int rank) const noexcept;

  /// Hosts that the ranks are on, numbered by the lowest of their ranks. Ranks of one host share memory.
  [[nodiscard]] int num_hosts() const noexcept;
  [[nodiscard]] int host_of(int rank) const noexcept;

  /// Returns when every rank has called it.
  void barrier();

  /// Gathers `num_bytes` (equal on all ranks, any size) of every rank, in rank order, into `output`
  /// (size() * num_bytes bytes).
  void all_gather(const void* input, std::size_t num_bytes, void* output);

  /// From here on the group goes on without `ranks`, which are all that are left out; none: all take part. Collective
  /// over the ranks that take part: they give the same ranks, between two calls, also where the group is broken, which
  /// it is no longer then. Nobody waits for the others, nor reads what they do: dispatchers leave out their tokens and
  /// their experts (RoutingStats::lost_by_this_rank), and all_gather gives zeros in their place. What they may still
  /// write cannot reach anybody: the first call of every dispatcher takes memory anew, and refuses handles that were
  /// prepared before (kHandleMismatch); rows that were received before stay as they are.
  /// A rank that is left out throws kMaskedOut in every call, at once or when it wakes. It can take part again, where
  /// it lives: when all that are to take part, itself among them, set a mask without it. Throws kPeerLost or kTimeout
  /// naming a rank that was to take part and has gone or did not come, kShapeMismatch where ranks give different masks,
  /// kMaskedOut where others have set another one meanwhile, kInvalidArgument, kUnsupported where this rank's host has
  /// lost its way to the other hosts. The mask in force stays then, and a group that was broken is.
  void set_mask(const std::vector<int>& ranks);
  /// set_mask of none.
  void clear_mask() { set_mask({}); }
  /// The ranks that are left out, ascending.
  [[nodiscard]] std::vector<int> masked() const;
  [[nodiscard]] bool is_masked(int rank) const noexcept;
  /// The ranks that the group is broken for, or will be: the one that a call has named, or all that have gone (of a
  /// host that has, all of its ranks), in ascending order. None: all is well as far as this rank knows. Waits for
  /// nothing, and may be called from any thread.
  [[nodiscard]] std::vector<int> suspects() const;

  /// For dispatchers; not part of the stable API.
  [[nodiscard]] GroupImpl& impl() const noexcept { return *impl_; }
  [[nodiscard]] std::shared_ptr<GroupImpl> share() const noexcept { return impl_; }

 private:
  std::shared_ptr<GroupImpl> impl_;
};

/// Creates a group whose ranks are threads of this process: element r belongs to the thread that plays rank r.
[[nodiscard]] EPISTLE_API std::vector<Group> make_thread_groups(int num_ranks, const GroupOptions& options = {});

/// Runs `body` as every rank of a thread group, one thread per rank, and waits for all of them. A rank that throws or
/// returns early counts as lost for the ranks that still wait for it. Rethrows the error of the rank that failed first
/// of itself (not one that only reports another rank's loss).
EPISTLE_API void run_thread_ranks(int num_ranks, const std::function<void(Group&)>& body,
                                  const GroupOptions& options = {});

/// Where a process stands among the ranks that a launcher started.
struct LaunchInfo {
  int rank = 0;
  int num_ranks = 1;
  int local_rank = 0;
  std::string job = {};       ///< names the rendezvous; equal on all ranks of a job, different between jobs
  std::string launcher = {};  ///< which variables it was read from: epistle, torchrun, openmpi, pmi, slurm
  /// Where ranks of several hosts meet, "host:port": rank 0 listens there, or at one of the 15 ports behind it where
  /// that is taken (EPISTLE_PORT names another). "pmix": by the launcher's PMIx server. Empty: all are on this host.
  std::string address = {};
};

/// True when this process was started as one of several ranks.
[[nodiscard]] EPISTLE_API bool is_launched() noexcept;

/// Reads the launcher's variables: `epistle run`; torchrun (RANK, WORLD_SIZE, LOCAL_RANK); Open MPI; PMI (MPICH, Intel
/// MPI); Slurm. Where the job spans several hosts, `address` comes from MASTER_ADDR and MASTER_PORT; where these are
/// not set, from PMIx or Slurm's list of nodes. Throws kNotFound where there are no such variables, kInvalidArgument
/// where they are malformed or do not say where to meet.
[[nodiscard]] EPISTLE_API LaunchInfo read_launch_info();

/// Gives one text of every rank, in rank order; collective. What the ranks are joined by already can do it:
/// torch.distributed, MPI, an engine.
using GatherTexts = std::function<std::vector<std::string>(const std::string& own)>;

/// Joins the process group that the launcher described. Collective over its processes. Those of one host share memory
/// that is anonymous (memfd): it has no name and is gone when the last process is, however it ends. Hosts are tied by
/// TCP: who does not know EPISTLE_JOB_SECRET (without it: the job's name) is refused.
[[nodiscard]] EPISTLE_API Group join_process_group(const GroupOptions& options = {});
[[nodiscard]] EPISTLE_API Group join_process_group(const LaunchInfo& info, const GroupOptions& options = {});
/// The same of ranks that can gather texts; they need no launcher and no address. What `gather` throws goes through.
[[nodiscard]] EPISTLE_API Group join_process_group(int rank, int num_ranks, const GatherTexts& gather,
                                                   const GroupOptions& options = {});

}  // namespace epistle
