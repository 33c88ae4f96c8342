// Memory that all ranks address, in what no scenario shows.
#include "dispatch/link/rank_memory.hpp"

#include <gtest/gtest.h>

#include "epistle/group.hpp"

#include "dispatch/call/build_parts.hpp"
#include "dispatch/call/resolved_config.hpp"

namespace epistle {
namespace {

/// Links need nothing where there may be no tokens.
class NothingIsNeeded final : public PlanRules {
 public:
  [[nodiscard]] SectionBytes content_bytes(const DispatchLayout& /*layout*/,
                                           const RowDemand& /*demand*/) const noexcept override {
    return {};
  }
};

TEST(RankMemory, IsThereForAPlanThatNeedsNothing) {
  const NothingIsNeeded rules;
  run_thread_ranks(2, [&](Group& group) {
    const DispatcherConfig config{.hidden = 16, .num_experts = 4, .top_k = 2, .max_tokens = 0};
    const BufferPlan plan(rules, to_layout_params(resolve_config(config, 2, 1), 2), {});
    ASSERT_EQ(plan.reserved_bytes(), 0);
    const RankMemory memory(group.impl(), plan);
    EXPECT_EQ(memory.committed_bytes(), 0);
    EXPECT_EQ(memory.resident_bytes(), 0);
  });
}

}  // namespace
}  // namespace epistle
