// How the processes of a job find each other and exchange file descriptors: a star of Unix sockets around rank 0, in
// the abstract namespace (no file is left behind), opened to processes of the same user only.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "group/shared_memory.hpp"

namespace epistle {

class Rendezvous {
 public:
  /// Connects all ranks of `job`. Throws kTimeout naming the ranks that did not come, kShapeMismatch for a rank with
  /// another group size or library version, kInvalidArgument for a rank that came twice.
  Rendezvous(const std::string& job, int rank, int num_ranks, std::chrono::milliseconds timeout);

  /// Collective: every rank gives one descriptor and receives a copy of every rank's, in rank order. Throws kPeerLost
  /// or kTimeout naming the rank at fault.
  [[nodiscard]] std::vector<UniqueFd> exchange(const UniqueFd& own, std::chrono::milliseconds timeout);

 private:
  void accept_peers(const std::string& address, std::chrono::milliseconds timeout);
  void connect_to_root(const std::string& address, std::chrono::milliseconds timeout);
  [[nodiscard]] std::vector<UniqueFd> exchange_as_root(const UniqueFd& own, std::chrono::milliseconds timeout);
  [[nodiscard]] std::vector<UniqueFd> exchange_as_peer(const UniqueFd& own, std::chrono::milliseconds timeout);

  int rank_;
  int num_ranks_;
  std::vector<UniqueFd> sockets_;  ///< root: one per rank, its own empty; others: one, to the root
};

}  // namespace epistle
