// The first thing that ranks of several hosts have together: a way to gather one text of every rank.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "epistle/group.hpp"

#include "group/net/address.hpp"

namespace epistle {

class Gathering {
 public:
  Gathering() = default;
  virtual ~Gathering() = default;
  Gathering(const Gathering&) = delete;
  Gathering& operator=(const Gathering&) = delete;

  /// Collective: what every rank has given, in rank order. Throws the same code on all ranks, with the same rank at
  /// fault.
  [[nodiscard]] virtual std::vector<std::string> all_gather(const std::string& own) = 0;
  /// This host's address on the way to the others; nothing where that is not known.
  [[nodiscard]] virtual std::optional<SocketAddress> own_address() const = 0;
};

/// Ports at which rank 0 may be met, since another program may have the first.
struct MeetingPlace {
  HostAndPort where;
  int num_ports = 1;
};

struct GatheringRank {
  int rank = 0;
  int num_ranks = 1;
  std::chrono::milliseconds timeout{0};
};

/// Over TCP around rank 0, which listens at `place`, or at that port of the interface that EPISTLE_INTERFACE names.
/// Throws, on all ranks that have come: kTimeout naming a rank that did not, kShapeMismatch for one with another group
/// size or library version, kPeerLost for one that has ended.
[[nodiscard]] std::unique_ptr<Gathering> gather_around_root(const MeetingPlace& place, const std::string& secret,
                                                            const GatheringRank& rank);

/// By a function of the caller, which may throw what it likes.
[[nodiscard]] std::unique_ptr<Gathering> gather_by(GatherTexts gather, int num_ranks);

}  // namespace epistle
