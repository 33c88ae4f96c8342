// The same bits whatever moves the rows: dispatcher, kind of group, number of worker threads.
#include <array>
#include <cstddef>
#include <cstring>
#include <string>
#include <vector>

#include <sys/mman.h>

#include <gtest/gtest.h>

#include "epistle/group.hpp"

#include "support/process_ranks.hpp"
#include "support/scenario.hpp"

namespace epistle::testing {
namespace {

/// What combine gave, by rank.
using Bits = std::vector<std::vector<std::byte>>;

Scenario rounding_scenario(CombineMode mode, OutputLayout layout) {
  Scenario scenario;
  scenario.config.hidden = 96;
  scenario.config.num_experts = 10;
  scenario.config.top_k = 6;
  scenario.config.max_tokens = 50;
  scenario.config.layout = layout;
  scenario.config.alignment = 4;
  scenario.config.combine = mode;
  scenario.tokens_per_rank = {50, 17, 33};
  scenario.odd_values = true;
  return scenario;
}

std::vector<std::byte> combined_bits(Group& group, const std::string& dispatcher_name, const Scenario& scenario) {
  const Play play(scenario, 0);
  const int rank = group.rank();
  const auto dispatcher = make_dispatcher(dispatcher_name, group, scenario.config);
  const Handle handle = dispatcher->prepare(play.table(rank).view());
  const auto payload = play.payload(rank);
  const DispatchOutput& output =
      dispatcher->dispatch(handle, {.rows = payload.data(), .num_tokens = play.table(rank).num_tokens});
  // Expert outputs depend on the token and the expert, so every order of sums has its own bits.
  const auto rows = play.values(5, rank, output.num_rows);
  std::vector<std::byte> out(static_cast<std::size_t>(play.table(rank).num_tokens * play.combine_row_bytes()));
  dispatcher->combine(handle, rows.data(), out.data(), static_cast<std::int64_t>(out.size()));
  return out;
}

Bits over_threads(const std::string& dispatcher_name, Scenario scenario, int num_workers = 1) {
  scenario.config.num_workers = num_workers;
  Bits bits(scenario.tokens_per_rank.size());
  run_thread_ranks(static_cast<int>(bits.size()), [&](Group& group) {
    bits[static_cast<std::size_t>(group.rank())] = combined_bits(group, dispatcher_name, scenario);
  });
  return bits;
}

/// Like over_threads; every rank's bits come back through memory shared with its process.
Bits over_processes(const std::string& dispatcher_name, const Scenario& scenario) {
  constexpr std::size_t kBytesPerRank = 1 << 20;
  const std::size_t num_ranks = scenario.tokens_per_rank.size();
  void* const shared =
      ::mmap(nullptr, kBytesPerRank * num_ranks, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) throw std::runtime_error("mmap failed");
  auto* const bytes = static_cast<std::byte*>(shared);
  const auto exits = run_process_ranks(static_cast<int>(num_ranks), [&](Group& group) {
    const auto own = combined_bits(group, dispatcher_name, scenario);
    if (own.size() > kBytesPerRank) return 1;
    std::memcpy(bytes + static_cast<std::size_t>(group.rank()) * kBytesPerRank, own.data(), own.size());
    return 0;
  });
  Bits bits;
  for (std::size_t rank = 0; rank < num_ranks; ++rank) {
    EXPECT_EQ(exits[rank], 0) << "exit of rank " << rank;
    const Play play(scenario, 0);
    const std::byte* const begin = bytes + rank * kBytesPerRank;
    bits.emplace_back(begin, begin + scenario.tokens_per_rank[rank] * play.combine_row_bytes());
  }
  ::munmap(shared, kBytesPerRank * num_ranks);
  return bits;
}

class Determinism : public ::testing::TestWithParam<std::tuple<CombineMode, OutputLayout>> {
 protected:
  Scenario scenario() const { return rounding_scenario(std::get<0>(GetParam()), std::get<1>(GetParam())); }
};

TEST_P(Determinism, SameBitsFromEveryDispatcher) {
  const Bits direct = over_threads("direct", scenario());
  EXPECT_EQ(direct, over_threads("alltoall", scenario()));
  EXPECT_EQ(direct, over_threads("reference", scenario()));
}

TEST_P(Determinism, SameBitsFromThreadsAndProcesses) {
  EXPECT_EQ(over_processes("direct", scenario()), over_threads("direct", scenario()));
  EXPECT_EQ(over_processes("alltoall", scenario()), over_threads("alltoall", scenario()));
}

TEST_P(Determinism, SameBitsFromAnyNumberOfWorkers) {
  for (const std::string name : {"direct", "alltoall"}) {
    EXPECT_EQ(over_threads(name, scenario(), 1), over_threads(name, scenario(), 3)) << name;
  }
}

TEST_P(Determinism, SameBitsOnEveryRun) {
  EXPECT_EQ(over_threads("direct", scenario()), over_threads("direct", scenario()));
}

INSTANTIATE_TEST_SUITE_P(All, Determinism,
                         ::testing::Combine(::testing::Values(CombineMode::kHierarchical, CombineMode::kFlat),
                                            ::testing::Values(OutputLayout::kTokenMajor, OutputLayout::kExpertMajor)),
                         [](const auto& param_info) {
                           return std::string(std::get<0>(param_info.param) == CombineMode::kFlat ? "Flat"
                                                                                                  : "Hierarchical") +
                                  (std::get<1>(param_info.param) == OutputLayout::kTokenMajor ? "TokenMajor"
                                                                                              : "ExpertMajor");
                         });

// The two modes round at different places; if they always agreed, the tests above would prove little.
TEST(DeterminismOfModes, ModesDifferInSomeBits) {
  const Bits flat = over_threads("direct", rounding_scenario(CombineMode::kFlat, OutputLayout::kExpertMajor));
  EXPECT_NE(flat, over_threads("direct", rounding_scenario(CombineMode::kHierarchical, OutputLayout::kExpertMajor)));
}

}  // namespace
}  // namespace epistle::testing
