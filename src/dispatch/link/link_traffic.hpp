// What goes over links in one transfer: rows, in chunks where the other end works on one while the next is on its way,
// each followed by a signal.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "dispatch/link/rank_memory.hpp"
#include "group/domain_link.hpp"
#include "group/group_impl.hpp"
#include "layout/buffer_plan.hpp"

namespace epistle {

/// Rows [begin, end) of a transfer.
struct Chunk {
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

/// The chunks of a transfer: both ends know its rows, so they agree on its chunks.
class Chunks {
 public:
  Chunks(std::int64_t num_rows, std::int64_t row_bytes) noexcept;

  [[nodiscard]] std::int64_t count() const noexcept { return (num_rows_ + chunk_rows_ - 1) / chunk_rows_; }
  [[nodiscard]] Chunk at(std::int64_t idx) const noexcept;

 private:
  std::int64_t num_rows_;
  std::int64_t chunk_rows_;
};

/// Sections of rows in GPU memory, in place of those in host memory.
struct GpuPlaces {
  std::array<std::byte*, kNumBufferSections> sections{};  ///< of this rank
  std::int64_t offset = 0;                                ///< of a peer's: what is added to where they lie by the plan
};

/// This rank's end of the links to ranks of other domains, and how far it has heard from each.
class LinkTraffic {
 public:
  /// All of them outlive the traffic; `domains`: those that the ranks of its device form.
  LinkTraffic(GroupImpl& group, const Domains& domains, DomainLink& link, const BufferPlan& plan,
              const RankMemory& memory);
  /// From here on over another link, which was opened where the mask of the group has changed.
  void restart(DomainLink& link) noexcept;

  /// From here on rows lie there; null: in host memory. Outlives the traffic.
  void use_gpu(const GpuPlaces* places) noexcept { gpu_ = places; }

  [[nodiscard]] const Domains& domains() const noexcept { return domains_; }
  [[nodiscard]] int own_domain() const noexcept { return domains().domain_of(group_.rank()); }
  /// The rank of this one's index in a domain.
  [[nodiscard]] int peer_in(int domain) const noexcept {
    return domains().rank_at(domain, domains().index_of(group_.rank()));
  }
  [[nodiscard]] std::int64_t sent_bytes() const noexcept { return link_->sent_bytes(); }

  struct Put {
    int peer = 0;
    BufferSection from = BufferSection::kSendRows;  ///< of this rank
    std::int32_t from_buffer = 0;                   ///< which copy of it, where there are several
    BufferSection to = BufferSection::kStageRows;   ///< of the peer
    std::int64_t from_row = 0;
    std::int64_t to_row = 0;
    std::int64_t num_rows = 0;
    std::int64_t row_bytes = 0;
    bool in_host = false;  ///< also where rows lie on GPUs
  };
  void put(const Put& what);
  void signal(int peer) { link_->signal(peer); }

  /// Chunks of the transfer under way that have arrived from a peer; those taken before are left out.
  [[nodiscard]] std::int64_t arrived(int peer);
  /// Marks them as taken.
  void take(int peer, std::int64_t num_chunks) noexcept {
    taken_[static_cast<std::size_t>(peer)] += static_cast<std::uint64_t>(num_chunks);
  }

  /// Waits until at least `num_chunks` have arrived; breaks the group where the peer is lost or late. `missing_rows`:
  /// what the others owe in the call, where it brings rows.
  void wait_for(int peer, std::int64_t num_chunks, Phase phase, const MissingRows& missing_rows = {});
  /// Waits until all that was put has been delivered.
  void flush(Phase phase, const MissingRows& missing_rows = {});

 private:
  /// Waits until `is_done` says so. `peer`: whom that is up to; -1 = somebody.
  template <typename IsDone>
  void wait(Phase phase, int peer, const MissingRows& missing_rows, const IsDone& is_done);
  /// A rank of another domain; one that is not masked out where there is one.
  [[nodiscard]] int some_peer() const noexcept;

  GroupImpl& group_;
  const Domains& domains_;
  DomainLink* link_;
  const BufferPlan& plan_;
  const RankMemory& memory_;
  const GpuPlaces* gpu_ = nullptr;
  std::vector<std::uint64_t> taken_;  ///< [num_ranks] signals that have been used, of all transfers
};

}  // namespace epistle
