// File descriptors from process to process, whichever ranks of a group are left: each has a socket of its own, whose
// address the others learn through what they share.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "group/fd_channel.hpp"

namespace epistle {

class DescriptorMail {
 public:
  /// Trivial: ranks gather it.
  struct Address {
    std::uint64_t token = 0;       ///< what messages to this rank carry; only who shares memory with it knows
    std::uint32_t name_bytes = 0;  ///< in the abstract namespace
    char name[12] = {};
  };
  /// The ranks that exchange, in rank order, this one among them.
  struct Members {
    std::span<const int> ranks;
    std::span<const Address> addresses;  ///< by rank, of the whole group
    int own;
  };

  /// Throws kSystem.
  DescriptorMail();

  [[nodiscard]] const Address& address() const noexcept { return address_; }

  /// Collective: every member gives one descriptor and receives a copy of every member's, by rank; of no member there
  /// is none. Throws kTimeout or kPeerLost that names a rank whose descriptor has not come, kSystem.
  [[nodiscard]] std::vector<UniqueFd> exchange(const Members& members, const UniqueFd& file, Deadline deadline,
                                               const std::function<bool(int peer)>& is_hopeless) const;

 private:
  class Exchange;

  UniqueFd socket_;
  Address address_;
};

}  // namespace epistle
