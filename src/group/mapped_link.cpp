// The link of ranks that map each other's memory: a put is a copy, and a signal a counter behind it.
#include <atomic>
#include <cstring>
#include <utility>

#include "group/domain_link.hpp"

namespace epistle {
namespace {

/// What one rank has told another: in the piece of who is told, one for every rank.
struct alignas(kSignalBytes) Signal {
  std::atomic<std::uint64_t> count;
};
static_assert(sizeof(Signal) == kSignalBytes);
static_assert(std::atomic<std::uint64_t>::is_always_lock_free, "signals are shared between processes");

class MappedLink final : public DomainLink {
 public:
  MappedLink(SymmetricRegion region, SymmetricRegion signals, int rank) noexcept
      : region_(std::move(region)), signals_(std::move(signals)), rank_(rank) {}

  [[nodiscard]] std::string describe() const override { return "mapped memory"; }

  // Everything that is committed can be reached.
  void expose(std::int64_t /*offset*/, std::int64_t /*num_bytes*/) override {}

  void put(int peer, std::int64_t offset, const void* source, std::int64_t num_bytes) override {
    if (num_bytes == 0) return;
    std::memcpy(region_.base(peer) + offset, source, static_cast<std::size_t>(num_bytes));
    count(num_bytes);
  }

  // pairs with the acquire in signals_from()
  void signal(int peer) override { signal_at(peer, rank_).count.fetch_add(1, std::memory_order_release); }

  [[nodiscard]] std::uint64_t signals_from(int peer) override {
    return signal_at(rank_, peer).count.load(std::memory_order_acquire);
  }

  [[nodiscard]] bool try_flush() override { return true; }

 private:
  [[nodiscard]] Signal& signal_at(int receiver, int sender) const noexcept {
    return reinterpret_cast<Signal*>(signals_.base(receiver))[sender];
  }

  SymmetricRegion region_;
  SymmetricRegion signals_;
  int rank_;
};

}  // namespace

std::unique_ptr<DomainLink> make_mapped_link(SymmetricRegion region, SymmetricRegion signals, int rank) {
  return std::make_unique<MappedLink>(std::move(region), std::move(signals), rank);
}

}  // namespace epistle
