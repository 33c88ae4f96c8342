// How a dispatcher reaches ranks of other domains: bytes of its own memory are put into a peer's piece of a symmetric
// region, and the peer is told when they are there. One link belongs to one region and one rank; its calls come from
// one thread at a time.
//
// Order. What is put to one peer arrives in any order. A signal arrives behind everything put to that peer before it:
// who has seen signal n of a rank may read all bytes that the rank put here before its n-th signal. Nothing else orders
// bytes: a step of the group says that the ranks got there, and says something of bytes only behind a flush.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "group/shared_memory.hpp"

namespace epistle {

/// Memory of a GPU, numbered as this process counts.
struct GpuSpan {
  std::byte* data = nullptr;
  std::int64_t num_bytes = 0;
  int gpu = 0;
};

class DomainLink {
 public:
  DomainLink() = default;
  virtual ~DomainLink() = default;
  DomainLink(const DomainLink&) = delete;
  DomainLink& operator=(const DomainLink&) = delete;

  /// What the bytes travel by, for people: "mapped memory", "tcp over eth0".
  [[nodiscard]] virtual std::string describe() const = 0;

  /// Collective, whenever ranks have committed more of their pieces: [offset, offset + num_bytes) of this rank's piece
  /// is there (num_bytes may be 0, and differ by rank), and peers may put there once all have come back from this.
  virtual void expose(std::int64_t offset, std::int64_t num_bytes) = 0;

  /// Puts `num_bytes` at `offset` of `peer`'s piece, which has exposed them. Returns when they are on their way; the
  /// source must not change until flush() has returned. `peer` may be any rank but this one.
  virtual void put(int peer, std::int64_t offset, const void* source, std::int64_t num_bytes) = 0;

  /// Raises signals_from(this rank) at `peer` by one, behind all that was put there.
  virtual void signal(int peer) = 0;

  /// Signals of `peer` that have arrived since the link was opened. Waits for nothing; moves on what is under way.
  [[nodiscard]] virtual std::uint64_t signals_from(int peer) = 0;

  /// Moves on what is under way, and says whether all that was put and signalled has been delivered at the peers: who
  /// waits on its own asks this, and looks after lost ranks in between. Throws what the transport has met (kPeerLost
  /// with the peer's rank, kSystem).
  [[nodiscard]] virtual bool try_flush() = 0;

  /// Why bytes of GPUs cannot be put without a copy in host memory; empty where they can. `trial`: some such memory,
  /// which is no longer needed when this returns.
  [[nodiscard]] virtual std::string lack_of_gpu_memory(const GpuSpan& trial);
  /// Collective, like expose(): GPU memory of this rank that peers put to at `offset`, which lies behind the end of its
  /// piece, in place of what was exposed at that offset before. Nothing is under way there.
  virtual void expose_gpu(std::int64_t offset, const GpuSpan& span);
  /// From here on put() takes this memory as a source, until it is withdrawn.
  virtual void register_gpu(const GpuSpan& span);
  /// Lets go of GPU memory that was exposed or registered; nothing is under way there.
  virtual void withdraw_gpu(const std::byte* data);

  /// Bytes of all puts so far, without what the transport adds.
  [[nodiscard]] std::int64_t sent_bytes() const noexcept { return sent_bytes_; }
  /// Counts on from what the link has sent that this one takes the place of.
  void continue_count(std::int64_t sent_bytes) noexcept { sent_bytes_ += sent_bytes; }

 protected:
  void count(std::int64_t num_bytes) noexcept { sent_bytes_ += num_bytes; }

 private:
  std::int64_t sent_bytes_ = 0;
};

/// Of what one rank has told another, in a line of its own.
inline constexpr std::int64_t kSignalBytes = 64;

/// A link whose ranks map each other's pieces: ranks of one host that are in different domains by declaration.
/// `signals`: a region with num_ranks * kSignalBytes committed in every piece, zero at first.
[[nodiscard]] std::unique_ptr<DomainLink> make_mapped_link(SymmetricRegion region, SymmetricRegion signals, int rank);

}  // namespace epistle
