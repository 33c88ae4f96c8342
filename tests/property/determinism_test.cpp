// The same bits whatever moves the rows: dispatcher, kind of group, number of worker threads.
#include <cstddef>
#include <cstring>
#include <string>
#include <vector>

#include <sys/mman.h>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "epistle/group.hpp"

#include "support/dispatcher_names.hpp"
#include "support/player.hpp"
#include "support/process_ranks.hpp"

namespace epistle::testing {
namespace {

/// What combine gave, by rank.
using Bits = std::vector<std::vector<std::byte>>;

Scenario rounding_scenario(SumOrder mode, OutputLayout layout) {
  Scenario scenario;
  scenario.config.hidden = 96;
  scenario.config.num_experts = 10;
  scenario.config.top_k = 6;
  scenario.config.max_tokens = 50;
  set_layout(scenario.config, layout, SizingMode::kExact, 0, /*alignment=*/4);
  scenario.config.order = mode;
  scenario.tokens_per_rank = {50, 17, 33};
  scenario.odd_values = true;
  return scenario;
}

std::vector<std::byte> combined_bits(Group& group, const std::string& dispatcher_name, const Scenario& scenario) {
  const Round round(scenario, 0);
  RankInputs inputs(round, group.rank());
  Dispatcher dispatcher(group, dispatcher_name, scenario.config, HostOptions{.num_workers = scenario.num_workers});
  const Handle handle = dispatcher.prepare(inputs.prepare());
  const Received received = dispatcher.dispatch(inputs.dispatch(handle));
  // Expert outputs depend on the token and the expert, so every order of sums has its own bits.
  const auto values = round.values(5, group.rank(), received.num_rows());
  RowsBuffer rows = inputs.output_rows(received.num_rows(), values);
  RowsBuffer out = inputs.sums();
  dispatcher.combine({.handle = handle, .rows = rows.view(), .out = out.view()});
  return out.compact();
}

Bits over_threads(const std::string& dispatcher_name, Scenario scenario, int num_workers = 1) {
  scenario.num_workers = num_workers;
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
    const std::byte* const begin = bytes + rank * kBytesPerRank;
    bits.emplace_back(begin, begin + scenario.tokens_per_rank[rank] * Round(scenario, 0).output_row_bytes());
  }
  ::munmap(shared, kBytesPerRank * num_ranks);
  return bits;
}

class Determinism : public ::testing::TestWithParam<std::tuple<SumOrder, OutputLayout>> {
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
  for (const std::string& name : fast_dispatcher_names()) {
    EXPECT_EQ(over_threads(name, scenario(), 1), over_threads(name, scenario(), 3)) << name;
  }
}

TEST_P(Determinism, SameBitsWithAnyStrides) {
  Scenario strided = scenario();
  strided.strided = true;
  for (const std::string& name : dispatcher_names()) {
    EXPECT_EQ(over_threads(name, scenario()), over_threads(name, strided)) << name;
  }
}

TEST_P(Determinism, SameBitsOnEveryRun) {
  EXPECT_EQ(over_threads("direct", scenario()), over_threads("direct", scenario()));
}

INSTANTIATE_TEST_SUITE_P(All, Determinism,
                         ::testing::Combine(::testing::Values(SumOrder::kHierarchical, SumOrder::kFlat,
                                                              SumOrder::kDeepEpV2),
                                            ::testing::Values(OutputLayout::kTokenMajor, OutputLayout::kExpertMajor)),
                         [](const auto& param_info) {
                           return fmt::format("{}_{}", to_string(std::get<0>(param_info.param)),
                                              to_string(std::get<1>(param_info.param)));
                         });

// The orders round at different places, or add in another sequence; if they always agreed, the tests above would prove
// little.
TEST(DeterminismOfOrders, OrdersDifferInSomeBits) {
  const auto bits_of = [](SumOrder order) {
    return over_threads("direct", rounding_scenario(order, OutputLayout::kExpertMajor));
  };
  EXPECT_NE(bits_of(SumOrder::kFlat), bits_of(SumOrder::kHierarchical));
  EXPECT_NE(bits_of(SumOrder::kFlat), bits_of(SumOrder::kDeepEpV2));
  EXPECT_NE(bits_of(SumOrder::kHierarchical), bits_of(SumOrder::kDeepEpV2));
}

}  // namespace
}  // namespace epistle::testing
