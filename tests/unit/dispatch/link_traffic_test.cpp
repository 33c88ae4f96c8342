// Waiting for what comes over a link: it ends with the chunk, with the loss of a rank, or in time.
#include "dispatch/link/link_traffic.hpp"

#include <atomic>
#include <chrono>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "epistle/group.hpp"

#include "dispatch/call/dispatcher_functions.hpp"
#include "dispatch/host/engine/host_context.hpp"
#include "support/round_trip.hpp"

namespace epistle::host {
namespace {

using epistle::testing::Outcome;
using epistle::testing::outcome_of;
using std::chrono::milliseconds;

TEST(Chunks, CoverAllRowsOnce) {
  for (const std::int64_t num_rows : {0, 1, 7, 1000}) {
    for (const std::int64_t row_bytes : {16, 14'336, 1'000'000}) {
      const Chunks chunks(num_rows, row_bytes);
      std::int64_t next = 0;
      for (std::int64_t idx = 0; idx < chunks.count(); ++idx) {
        EXPECT_EQ(chunks.at(idx).begin, next);
        EXPECT_GT(chunks.at(idx).end, next);
        next = chunks.at(idx).end;
      }
      EXPECT_EQ(next, num_rows);
    }
  }
}

/// Ranks that are all in a domain of their own, and the parts of hybrid that cross.
void play_apart(int num_ranks, milliseconds timeout, const std::function<void(Group&, LinkTraffic&)>& body) {
  const auto play = [&](Group& group) {
    const DispatcherConfig config{.hidden = 64, .num_experts = 4, .top_k = 2, .max_tokens = 8};
    const ResolvedConfig resolved = resolve_config(config, num_ranks, 1);
    const BufferPlan plan = DispatcherInfo::Functions::of(find_dispatcher("hybrid")).plan(resolved, num_ranks);
    HostContext context(group.impl(), resolved, plan.rules(), HostOptions{});
    LinkTraffic traffic(group.impl(), group.impl().domains(), *context.link, context.plan, context.memory);
    body(group, traffic);
  };
  run_thread_ranks(num_ranks, play, {.timeout = timeout, .domain_size = 1});
}

TEST(LinkTraffic, NamesThePeerWhoseChunkIsLate) {
  std::vector<Outcome> outcomes(3);
  std::atomic<int> num_done{0};
  const auto wait = [&](Group& group, LinkTraffic& traffic) {
    const auto rank = static_cast<std::size_t>(group.rank());
    if (rank == 1) {
      // Alive, and sends nothing.
      while (num_done.load() < 2) std::this_thread::sleep_for(milliseconds(1));
      outcomes[rank] = outcome_of([&] { group.impl().check_usable(); });
      return;
    }
    outcomes[rank] = outcome_of([&] { traffic.wait_for(1, 1, Phase::kDispatch); });
    num_done.fetch_add(1);
  };
  play_apart(3, milliseconds(300), wait);
  for (const Outcome& outcome : outcomes) {
    ASSERT_TRUE(outcome.has_value());
    EXPECT_EQ(outcome->code(), ErrorCode::kTimeout);
  }
  EXPECT_EQ(outcomes[0]->context().peer_rank, 1);
}

TEST(LinkTraffic, NamesThePeerThatHasGone) {
  Outcome outcome;
  const auto wait = [&](Group& group, LinkTraffic& traffic) {
    if (group.rank() == 1) return group.impl().depart();
    outcome = outcome_of([&] { traffic.wait_for(1, 1, Phase::kCombine); });
  };
  play_apart(2, milliseconds(30'000), wait);
  ASSERT_TRUE(outcome.has_value());
  EXPECT_EQ(outcome->code(), ErrorCode::kPeerLost);
  EXPECT_EQ(outcome->context().peer_rank, 1);
  EXPECT_EQ(outcome->context().phase, Phase::kCombine);
}

TEST(LinkTraffic, TakesWhatASignalAnnounces) {
  const auto exchange = [](Group& group, LinkTraffic& traffic) {
    const int peer = 1 - group.rank();
    EXPECT_EQ(traffic.arrived(peer), 0);
    group.barrier();
    traffic.signal(peer);
    traffic.signal(peer);
    traffic.wait_for(peer, 2, Phase::kDispatch);
    EXPECT_EQ(traffic.arrived(peer), 2);
    traffic.take(peer, 1);
    EXPECT_EQ(traffic.arrived(peer), 1);
    traffic.flush(Phase::kDispatch);
    group.barrier();
  };
  play_apart(2, milliseconds(30'000), exchange);
}

}  // namespace
}  // namespace epistle::host
