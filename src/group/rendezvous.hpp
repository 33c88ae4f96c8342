// How the processes of a job find each other, and how file descriptors go from one to another: a star of Unix sockets
// around rank 0, in the abstract namespace (no file is left behind), opened to processes of the same user only.
//
// Nothing here trusts that a rank comes, answers or lives: what one rank knows to have failed, it tells rank 0, and
// rank 0 tells all, so that all throw the same error.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "epistle/error.hpp"

#include "core/complaint.hpp"
#include "group/fd_channel.hpp"

namespace epistle {

/// True when a rank that is waited for in a transfer will send nothing any more.
using IsHopeless = std::function<bool(int peer_rank)>;

class Rendezvous {
 public:
  /// Connects all ranks of `job`. Throws, on all ranks that have come: kTimeout naming a rank that did not,
  /// kShapeMismatch for one with another group size or library version, kPeerLost for one that has ended, kSystem for
  /// one that met an error. Throws kInvalidArgument on a rank that came twice, which disturbs nobody else.
  Rendezvous(const std::string& job, int rank, int num_ranks, std::chrono::milliseconds timeout);

  /// Collective, the first step of a group: rank 0 makes a file and adopts it, then every other rank adopts a
  /// descriptor of it and says so. Rank 0 returns when all have, or throws why not all have; the others return when
  /// they have adopted it, and learn the rest through what they share now.
  void found(const std::function<UniqueFd()>& make, const std::function<void(UniqueFd)>& adopt,
             std::chrono::milliseconds timeout);

  // ---- Transfers of a group that exists, whose ranks agree on the outcome afterwards. A rank that fails says so and
  //      leaves the sockets in step. Throw kPeerLost or kTimeout that names the rank at fault, kSystem.
  //      ----------------

  /// Every rank receives a descriptor of rank 0's file. Rank 0 gives it, or why it has none.
  [[nodiscard]] UniqueFd broadcast(const UniqueFd& own, const Complaint& complaint, Deadline deadline,
                                   const IsHopeless& is_hopeless);
  /// Every rank gives one descriptor and receives a copy of every rank's, in rank order.
  [[nodiscard]] std::vector<UniqueFd> exchange(const UniqueFd& own, Deadline deadline, const IsHopeless& is_hopeless);

 private:
  void found_as_root(const std::function<UniqueFd()>& make, const std::function<void(UniqueFd)>& adopt,
                     std::chrono::milliseconds timeout);
  void found_as_peer(const std::function<void(UniqueFd)>& adopt, std::chrono::milliseconds timeout);
  void send_file(int peer_rank, int owner_rank, const UniqueFd& file, const Complaint& complaint,
                 const Patience& patience);
  [[nodiscard]] UniqueFd receive_file(int peer_rank, const Patience& patience);
  [[nodiscard]] int socket_of(int peer_rank) const noexcept {
    return sockets_[rank_ == 0 ? static_cast<std::size_t>(peer_rank) : 0].get();
  }

  int rank_;
  int num_ranks_;
  std::chrono::milliseconds timeout_;
  std::uint32_t num_transfers_ = 0;
  /// Root: of the file that the group was founded on. Never closed before the group is: with any descriptor of a file a
  /// process loses the locks that it holds there.
  UniqueFd first_file_;
  std::vector<UniqueFd> sockets_;  ///< root: one per rank, its own empty; others: one, to the root
};

}  // namespace epistle
