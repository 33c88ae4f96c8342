// Quotas of a batch on a GPU: the bits of the host, in the tables that dispatch goes by, and in dispatch.
#include "dispatch/cuda/quotas/batch_quotas.hpp"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <numeric>
#include <vector>

#include <cuda_runtime_api.h>

#include <gtest/gtest.h>

#include "epistle/dispatcher.hpp"

#include "dispatch/call/placed_experts.hpp"
#include "dispatch/call/resolved_config.hpp"
#include "gpu/cuda_error.hpp"
#include "layout/batch_shares.hpp"
#include "measure/cuda/captured_graph.hpp"
#include "support/cuda_devices.hpp"
#include "support/device_arena.hpp"
#include "support/random_replicas.hpp"

namespace epistle::testing {
namespace {

using test::Replicas;

class CudaBatchQuotas : public OnGpu<> {};

DispatcherConfig placed_config(const Placement& placement, std::int32_t slots_per_rank) {
  return {.hidden = 64,
          .num_experts = placement.num_experts(),
          .top_k = 1,
          .max_tokens = 64,
          .placement = placement,
          .slots_per_rank = slots_per_rank};
}

/// A placement in force on a GPU, and memory for what a batch brings and gives.
class PlacedOnGpu {
 public:
  PlacedOnGpu(const Placement& placement, std::int32_t slots_per_rank)
      : replicas_(test::replicas_of(placement, slots_per_rank)),
        placed_(placement, resolve_config(placed_config(placement, slots_per_rank), placement.num_ranks()),
                placement.num_ranks(), 0),
        arena_(0, std::int64_t{1} << 22) {
    tables_.replica_begin = take<std::int32_t>(replicas_.num_experts() + 1);
    arena_.upload(tables_.replica_begin, placed_.replica_begin().data(),
                  static_cast<std::int64_t>(placed_.replica_begin().size_bytes()));
    // Of entries there may be fewer than columns.
    tables_.entries = take<ReplicaEntry>(replicas_.num_columns());
    arena_.upload(tables_.entries, placed_.entries().data(), static_cast<std::int64_t>(placed_.entries().size_bytes()));
    cuda::check_cuda(cuda::load_batch_quotas({.slots = {},
                                              .num_experts = replicas_.num_experts(),
                                              .num_ranks = replicas_.num_ranks,
                                              .slots_per_rank = replicas_.slots_per_rank}),
                     "loading the kernel that shares out a batch");
    tokens_ = take<std::int64_t>(replicas_.num_experts());
    rank_tokens_ = take<std::int64_t>(replicas_.num_ranks);
    slot_tokens_ = take<std::int64_t>(replicas_.num_columns());
  }

  [[nodiscard]] cudaStream_t stream() { return arena_.stream(); }

  void give(const std::vector<std::int64_t>& tokens) {
    arena_.upload(tokens_, tokens.data(), static_cast<std::int64_t>(tokens.size() * sizeof(tokens[0])));
  }

  void launch() {
    cuda::check_cuda(cuda::launch_batch_quotas({.slots = tables_,
                                                .expert_tokens = tokens_,
                                                .rank_tokens = rank_tokens_,
                                                .slot_tokens = slot_tokens_,
                                                .num_experts = replicas_.num_experts(),
                                                .num_ranks = replicas_.num_ranks,
                                                .slots_per_rank = replicas_.slots_per_rank},
                                               stream()),
                     "sharing out a batch");
  }

  void expect_bits_of_the_host(const std::vector<std::int64_t>& tokens) {
    BatchShares host(replicas_.begin, replicas_.entries, replicas_.num_ranks);
    host.solve(tokens);
    std::vector<ReplicaEntry> parts(placed_.entries().begin(), placed_.entries().end());
    host.set_parts(parts);
    const std::vector<std::int64_t> ranks = arena_.read(rank_tokens_, replicas_.num_ranks);
    std::vector<std::int64_t> slots = arena_.read(slot_tokens_, replicas_.num_columns());
    const std::vector<ReplicaEntry> entries = arena_.read(tables_.entries, static_cast<std::int64_t>(parts.size()));
    for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
      ASSERT_EQ(ranks[rank], host.in_tokens(host.rank_units()[rank])) << "rank " << rank;
    }
    for (std::size_t entry = 0; entry < entries.size(); ++entry) {
      const auto slot = static_cast<std::size_t>(parts[entry].slot);
      ASSERT_EQ(slots[slot], host.in_tokens(host.units()[entry])) << "slot " << slot;
      slots[slot] = 0;
      ASSERT_EQ(entries[entry].part_end, parts[entry].part_end) << "slot " << slot;
      ASSERT_EQ(entries[entry].slot, parts[entry].slot);
    }
    EXPECT_EQ(std::count(slots.begin(), slots.end(), 0), static_cast<std::ptrdiff_t>(slots.size()))
        << "of places where no slot is";
  }

 private:
  template <typename Value>
  Value* take(std::int64_t count) {
    return reinterpret_cast<Value*>(arena_.take(count * static_cast<std::int64_t>(sizeof(Value))));
  }
  Replicas replicas_;
  PlacedExperts placed_;
  cuda::SlotTables tables_;
  DeviceArena arena_;
  std::int64_t* tokens_ = nullptr;
  std::int64_t* rank_tokens_ = nullptr;
  std::int64_t* slot_tokens_ = nullptr;
};

TEST_F(CudaBatchQuotas, BitsAreThoseOfTheHost) {
  for (std::uint64_t seed = 0; seed < 120; ++seed) {
    SCOPED_TRACE(seed);
    const Placement placement = test::random_placement(seed);
    PlacedOnGpu placed(placement, test::some_more_slots(placement, seed));
    for (int batch = 0; batch < 3; ++batch) {
      std::vector<std::int64_t> tokens = test::random_tokens(seed, batch, placement.num_experts());
      if (seed % 8 == 7) tokens.front() = (std::int64_t{1} << 40) + 12345;  // counted in units
      if (seed % 8 == 6) tokens.back() = -5;                                // as 0
      placed.give(tokens);
      placed.launch();
      placed.expect_bits_of_the_host(tokens);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(CudaBatchQuotas, ReplaysGoByTheTokensThatAreThereThen) {
  const Placement placement = test::random_placement(5);
  PlacedOnGpu placed(placement, placement.max_slots_per_rank());
  const CapturedGraph graph(placed.stream(), [&] { placed.launch(); });
  for (int batch = 0; batch < 4; ++batch) {
    const std::vector<std::int64_t> tokens = test::random_tokens(77, batch, placement.num_experts());
    placed.give(tokens);
    graph.launch(placed.stream());
    placed.expect_bits_of_the_host(tokens);
  }
}

}  // namespace
}  // namespace epistle::testing
