// prepare over several hosts. Its kernel tells all ranks what it has counted, and where their rows come from, by
// writing into their GPU memory; of ranks of other hosts there are mirrors (SymmetricHeap), and the host carries across
// what stands there. A kernel that waits for what comes by the host would hold its GPU for that long, so what the
// others tell is written here before it starts, and it runs three times:
//
//   1  counts this rank's tokens, as if the ranks of other hosts had none    then counts are gathered
//   2  gives rows their places, and writes records of them into the mirrors   then records are put where they belong
//   3  the same again, and describes what this rank receives
//
// Between ranks of one host each run is a call like any other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <unordered_map>
#include <vector>

#include "dispatch/call/resolved_config.hpp"
#include "dispatch/cuda/engine/context.hpp"
#include "dispatch/cuda/engine/cuda_handle.hpp"
#include "dispatch/cuda/engine/device_buffers.hpp"
#include "dispatch/cuda/engine/launch.hpp"
#include "dispatch/cuda/engine/sizes.hpp"
#include "dispatch/link/link_traffic.hpp"
#include "dispatch/link/rank_memory.hpp"
#include "group/domain_link.hpp"
#include "layout/buffer_plan.hpp"

namespace epistle::cuda {

class HostRelay {
 public:
  /// Collective, in a group of several hosts, behind all that the context has. The context outlives the relay.
  explicit HostRelay(EngineContext& context);

  /// Puts the kernel of prepare on the stream; throws.
  using Launch = std::function<void(const PrepareArgs&)>;
  /// Collective: in place of one launch. Waits for the stream. Throws on all ranks alike where one of them fails.
  void prepare(const CudaHandleState& handle, const PrepareArgs& args, const Launch& launch);

  /// The call that this rank's next kernel announces, on behalf of the ranks of other hosts. Waits for the stream.
  void answer(DeviceCall call, const CudaHandleState& handle);

  /// Put on links so far.
  [[nodiscard]] std::int64_t sent_bytes() const noexcept { return traffic_.sent_bytes(); }
  /// Of them, for the prepare of a handle.
  [[nodiscard]] std::int64_t header_bytes(const CudaHandleState& handle) const noexcept;

 private:
  /// Ranks [begin, end) of other hosts.
  struct Span {
    int begin = 0;
    int end = 0;
  };
  /// Records [begin, begin + count) among those that a rank receives.
  struct Records {
    std::int64_t begin = 0;
    std::int64_t count = 0;
  };
  struct Sent {
    std::uint64_t prepare_id = 0;
    std::int64_t num_bytes = 0;
  };

  void take_memory();
  [[nodiscard]] bool is_elsewhere(int rank) const noexcept { return !context_.heap->reaches(rank); }
  [[nodiscard]] std::byte* control_of(int rank) const noexcept {
    return context_.heap->base(rank) + context_.plan.section_offset(BufferSection::kControl);
  }
  [[nodiscard]] std::byte* records_of(int rank) const noexcept {
    return context_.heap->base(rank) + context_.plan.section_offset(BufferSection::kRecords);
  }
  [[nodiscard]] std::int64_t record_bytes() const noexcept { return context_.layout().pair_record_bytes(); }
  [[nodiscard]] std::int64_t outcome_bytes() const noexcept;
  /// Whether rows may be dropped, so that every rank has to hear what became of the others'.
  [[nodiscard]] bool tells_outcomes() const noexcept { return context_.config.overflow == OverflowPolicy::kDrop; }
  [[nodiscard]] std::int64_t tokens(int source, int destination) const noexcept;
  [[nodiscard]] Records records(int source, int destination) const noexcept;
  /// Whether `source` has anything for `destination` to be put there.
  [[nodiscard]] bool tells(int source, int destination) const noexcept {
    return tells_outcomes() || records(source, destination).count > 0;
  }
  [[nodiscard]] bool is_refused() const noexcept;

  /// One run of the kernel, for which the others have told `counts_`.
  void run(const PrepareArgs& args, const Launch& launch);
  /// Has the ranks of other hosts announce this, and be done with it.
  void stand_in(std::uint64_t word);
  [[nodiscard]] std::uint32_t read_epoch();
  [[nodiscard]] std::vector<std::int32_t> read_own_counts();
  void gather_counts();
  void pack();
  std::int64_t put();
  void await();
  void unpack();
  void copy(void* to, const void* from, std::int64_t num_bytes, const char* what) const;

  EngineContext& context_;
  BufferPlan plan_;
  RankMemory memory_;
  std::unique_ptr<DomainLink> link_;
  LinkTraffic traffic_;
  std::vector<Span> elsewhere_;
  PinnedMemory word_memory_;
  RelayWords words_;
  DeviceBuffer counters_;             ///< of expert tokens in runs that are not the last: nobody reads them
  std::vector<std::int32_t> counts_;  ///< [num_ranks, count_columns] that all ranks have told; empty = none
  std::unordered_map<const CudaHandleState*, Sent> sent_;
};

}  // namespace epistle::cuda
