#include "fabric/fabric_link.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <map>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "epistle/error.hpp"

#include "core/complaint.hpp"
#include "core/settings.hpp"
#include "fabric/rails.hpp"
#include "group/agreed_error.hpp"

namespace epistle {
namespace {

using Clock = std::chrono::steady_clock;

// How often a rank that waits for room looks whether the others are alive.
constexpr std::chrono::milliseconds kLookForLost{10};

/// What a rank tells of its endpoint.
struct EndpointCard {
  std::array<char, 256> address{};
  std::int32_t address_bytes = 0;
  FabricKey signals;
};

/// Bytes of a piece that peers may write.
struct Exposure {
  std::int64_t offset = 0;
  std::int64_t num_bytes = 0;
  FabricKey key;
};

/// Of one peer.
struct Peer {
  std::vector<Exposure> exposed;
  FabricKey signals;
  std::uint64_t num_signals = 0;   ///< asked for
  std::uint64_t sent_signals = 0;  ///< written there, or under way
  int num_under_way = 0;           ///< signals since the last time when none was, each written from a place of its own
  std::uint64_t oldest_epoch = 0;  ///< puts before it have been delivered
};

// Signals to a peer that may be under way together where the provider keeps their order. What tells that one has been
// delivered comes back behind all that the peer is sending: one at a time, the peer would learn of a chunk only when
// its own were through.
constexpr int kMaxSignalsUnderWay = 32;

// Signals have an epoch of their own: that of a put is the number of signals before it, modulo this.
constexpr std::uint32_t kSignalEpoch = ~std::uint32_t{0};

std::uint32_t epoch_of(std::uint64_t num_signals) noexcept {
  return static_cast<std::uint32_t>(num_signals % kSignalEpoch);
}

class FabricLink final : public DomainLink {
 public:
  FabricLink(GroupImpl& group, SymmetricRegion region, const FabricLinkOptions& options)
      : group_(&group),
        region_(std::move(region)),
        incoming_(static_cast<std::size_t>(group.num_ranks()), 0),
        outgoing_(static_cast<std::size_t>(group.num_ranks()) * kMaxSignalsUnderWay, 0),
        peers_(static_cast<std::size_t>(group.num_ranks())) {
    const Call call{.kind = CallKind::kCreateRegion};
    EndpointCard card;
    const Complaint complaint = attempt([&] {
      endpoint_ = open_fabric_endpoint(options.request);
      const std::string address = endpoint_->address();
      if (address.size() > card.address.size()) {
        throw Error(ErrorCode::kUnsupported,
                    fmt::format("an address of {} bytes is more than {}", address.size(), card.address.size()));
      }
      std::copy(address.begin(), address.end(), card.address.begin());
      card.address_bytes = static_cast<std::int32_t>(address.size());
      card.signals = endpoint_->expose(incoming_.data(), bytes_of(incoming_));
      (void)endpoint_->expose(outgoing_.data(), bytes_of(outgoing_));
    });
    const std::vector<EndpointCard> cards = group.gather(call, Phase::kCreate, card, complaint);
    keeps_order_ = endpoint_->way().is_ordered && !options.assume_unordered;
    group.take_together(call, Phase::kCreate, [&] { meet(cards); });
  }

  [[nodiscard]] std::string describe() const override {
    const FabricWay& way = endpoint_->way();
    return fmt::format("{} over {}{}", way.provider, way.domain, way.address.empty() ? "" : " (" + way.address + ")");
  }

  void expose(std::int64_t offset, std::int64_t num_bytes) override {
    const Call call{.kind = CallKind::kCreateRegion};
    Exposure own{.offset = offset, .num_bytes = num_bytes, .key = {}};
    const Complaint complaint = attempt([&] { own.key = endpoint_->expose(region_.own() + offset, num_bytes); });
    const std::vector<Exposure> all = group_->gather(call, Phase::kCreate, own, complaint);
    for (std::size_t peer = 0; peer < peers_.size(); ++peer) {
      const bool has_told = !group_->is_masked(static_cast<int>(peer));
      if (has_told && all[peer].num_bytes > 0) peers_[peer].exposed.push_back(all[peer]);
    }
  }

  [[nodiscard]] std::string lack_of_gpu_memory(const GpuSpan& trial) override {
    const FabricWay& way = endpoint_->way();
    if (!way.reaches_gpu_memory)
      return fmt::format("{} over {} does not register it (FI_HMEM)", way.provider, way.domain);
    const Complaint complaint = attempt([&] { (void)endpoint_->register_gpu(trial, true); });
    if (complaint) return std::string(complaint->message());
    endpoint_->withdraw(trial.data);
    return {};
  }

  void expose_gpu(std::int64_t offset, const GpuSpan& span) override {
    const Call call{.kind = CallKind::kCreateRegion};
    Exposure own{.offset = offset, .num_bytes = span.num_bytes, .key = {}};
    const Complaint complaint = attempt([&] {
      OwnGpuMemory& known = own_gpu_memory_[offset];
      if (known.data != span.data) known = {span.data, endpoint_->register_gpu(span, true)};
      own.key = known.key;
    });
    const std::vector<Exposure> all = group_->gather(call, Phase::kCreate, own, complaint);
    // What has landed in a GPU's memory is seen no sooner than its delivery says; a signal goes to host memory.
    keeps_order_ = false;
    for (std::size_t peer = 0; peer < peers_.size(); ++peer) {
      std::vector<Exposure>& exposed = peers_[peer].exposed;
      exposed.erase(std::remove_if(exposed.begin(), exposed.end(),
                                   [offset](const Exposure& former) { return former.offset == offset; }),
                    exposed.end());
      const bool has_told = !group_->is_masked(static_cast<int>(peer));
      if (has_told && all[peer].num_bytes > 0) exposed.push_back(all[peer]);
    }
  }

  void register_gpu(const GpuSpan& span) override {
    of_group([&] { (void)endpoint_->register_gpu(span, false); });
  }
  void withdraw_gpu(const std::byte* data) override {
    endpoint_->withdraw(data);
    for (auto& [offset, known] : own_gpu_memory_) {
      if (known.data == data) known = {};
    }
  }

  void put(int peer, std::int64_t offset, const void* source, std::int64_t num_bytes) override {
    const auto* next = static_cast<const std::byte*>(source);
    for (std::int64_t done = 0; done < num_bytes;) {
      const Exposure& exposure = exposure_at(peer, offset + done);
      const std::int64_t within = offset + done - exposure.offset;
      const std::int64_t part = std::min({num_bytes - done, exposure.num_bytes - within, kMaxPartBytes});
      done += put_part({.peer = peer, .key = exposure.key, .offset = within}, next + done, part);
    }
    count(num_bytes);
  }

  void signal(int peer) override {
    ++peer_at(peer).num_signals;
    of_group([&] { send_signals(peer); });
  }

  [[nodiscard]] std::uint64_t signals_from(int peer) override {
    send_all_signals();
    std::uint64_t num_signals = 0;
    endpoint_->look([&] { num_signals = incoming_[static_cast<std::size_t>(peer)]; });
    return num_signals;
  }

  [[nodiscard]] bool try_flush() override {
    send_all_signals();
    return of_group([&] { return waiting_peers_.empty() && endpoint_->num_under_way() == 0; });
  }

 private:
  struct OwnGpuMemory {
    const std::byte* data = nullptr;
    FabricKey key;
  };

  // Small enough that other peers get their turn.
  static constexpr std::int64_t kMaxPartBytes = std::int64_t{1} << 20;

  [[nodiscard]] static std::int64_t bytes_of(const std::vector<std::uint64_t>& signals) noexcept {
    return static_cast<std::int64_t>(signals.size() * sizeof(signals[0]));
  }
  [[nodiscard]] Peer& peer_at(int peer) noexcept { return peers_[static_cast<std::size_t>(peer)]; }

  void meet(const std::vector<EndpointCard>& cards) {
    std::vector<std::string> addresses(cards.size());
    for (std::size_t peer = 0; peer < cards.size(); ++peer) {
      peers_[peer].signals = cards[peer].signals;
      // Who is masked out has told nothing.
      if (static_cast<int>(peer) == group_->rank() || group_->is_masked(static_cast<int>(peer))) continue;
      addresses[peer].assign(cards[peer].address.data(), static_cast<std::size_t>(cards[peer].address_bytes));
    }
    endpoint_->connect(addresses);
  }

  [[nodiscard]] const Exposure& exposure_at(int peer, std::int64_t offset) const {
    for (const Exposure& exposure : peers_[static_cast<std::size_t>(peer)].exposed) {
      if (offset >= exposure.offset && offset < exposure.offset + exposure.num_bytes) return exposure;
    }
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("byte {} of the piece of rank {} was not exposed to the others", offset, peer),
                {.rank = group_->rank(), .peer_rank = peer});
  }

  /// Returns how many bytes are on their way: one at least.
  std::int64_t put_part(const FabricTarget& target, const void* source, std::int64_t num_bytes) {
    const std::uint32_t epoch = epoch_of(peer_at(target.peer).num_signals);
    const Clock::time_point start = Clock::now();
    Clock::time_point next_look = start + kLookForLost;
    for (;;) {
      const std::int64_t taken = of_group([&] { return endpoint_->try_put(target, source, num_bytes, epoch); });
      if (taken > 0) return taken;
      send_all_signals();
      std::this_thread::yield();
      const Clock::time_point now = Clock::now();
      if (now < next_look) continue;
      next_look = now + kLookForLost;
      group_->check_usable();
      group_->fail_if_lost(Phase::kNone);
      if (now - start > group_->timeout()) group_->fail(ErrorCode::kTimeout, Phase::kNone, target.peer);
    }
  }

  /// Writes how many signals there have been, as far as what was put before them is there.
  void send_signals(int rank) {
    Peer& peer = peer_at(rank);
    const int most = keeps_order_ ? kMaxSignalsUnderWay : 1;
    if (peer.num_under_way == most) {
      if (endpoint_->num_under_way(rank, kSignalEpoch) > 0) return wait_for(rank);
      peer.num_under_way = 0;
    }
    std::uint64_t ready = peer.num_signals;
    if (!keeps_order_) {
      while (peer.oldest_epoch < peer.num_signals && endpoint_->num_under_way(rank, epoch_of(peer.oldest_epoch)) == 0) {
        ++peer.oldest_epoch;
      }
      ready = peer.oldest_epoch;
    }
    if (ready > peer.sent_signals) {
      std::uint64_t& value = outgoing_[static_cast<std::size_t>(rank * kMaxSignalsUnderWay + peer.num_under_way)];
      value = ready;
      const auto offset = static_cast<std::int64_t>(sizeof(value)) * group_->rank();
      if (endpoint_->try_put({.peer = rank, .key = peer.signals, .offset = offset}, &value, sizeof(value),
                             kSignalEpoch) > 0) {
        peer.sent_signals = ready;
        ++peer.num_under_way;
      }
    }
    if (peer.sent_signals < peer.num_signals) wait_for(rank);
  }

  void wait_for(int rank) {
    if (peer_at(rank).sent_signals == peer_at(rank).num_signals) return;
    if (std::find(waiting_peers_.begin(), waiting_peers_.end(), rank) == waiting_peers_.end()) {
      waiting_peers_.push_back(rank);
    }
  }

  void send_all_signals() {
    of_group([&] {
      for (const int rank : std::exchange(waiting_peers_, {})) send_signals(rank);
    });
  }

  /// What the endpoint throws is told of this rank: its peers are ranks of the group. A peer that the transport does
  /// not reach any more is a loss that all agree on: others may not have seen it.
  template <typename Work>
  std::invoke_result_t<const Work&> of_group(const Work& work) const {
    try {
      return work();
    } catch (const Error& error) {
      if (error.code() == ErrorCode::kPeerLost) {
        group_->fail_if_lost(Phase::kNone);
        group_->fail(ErrorCode::kPeerLost, Phase::kNone, error.context().peer_rank);
      }
      Error::Context context = error.context();
      context.rank = group_->rank();
      throw Error(error.code(), std::string(error.message()), context);
    }
  }

  GroupImpl* group_;
  SymmetricRegion region_;
  // Before the endpoint, whose peers write there until it is closed.
  std::vector<std::uint64_t> incoming_;  ///< by rank: how many signals it has sent, as it writes it
  std::vector<std::uint64_t> outgoing_;  ///< by rank: what is being written there, kMaxSignalsUnderWay places of each
  std::unique_ptr<FabricEndpoint> endpoint_;
  std::vector<Peer> peers_;
  std::vector<int> waiting_peers_;                       ///< that have not been sent all signals
  std::map<std::int64_t, OwnGpuMemory> own_gpu_memory_;  ///< by the offset that peers put to
  bool keeps_order_ = false;
};

}  // namespace

FabricRequest fabric_request(const GroupImpl& group) {
  int rail = 0;
  for (int rank = 0; rank < group.rank(); ++rank) rail += group.host_of(rank) == group.host_of(group.rank()) ? 1 : 0;
  return {.provider = settings().fabric_provider(),
          .address = group.host_address(),
          .nics = parse_nics(settings().fabric_nics()),
          .rail = rail};
}

bool takes_fabric_links(const GroupImpl& group) {
  return group.num_hosts() > 1 || settings().domain_link() == DomainLinkChoice::kFabric;
}

std::unique_ptr<DomainLink> make_fabric_link(GroupImpl& group, SymmetricRegion region) {
  return make_fabric_link(group, std::move(region), {.request = fabric_request(group)});
}

std::unique_ptr<DomainLink> make_fabric_link(GroupImpl& group, SymmetricRegion region,
                                             const FabricLinkOptions& options) {
  return std::make_unique<FabricLink>(group, std::move(region), options);
}

}  // namespace epistle
