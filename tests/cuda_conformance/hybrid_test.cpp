// `hybrid` on the CUDA device over several domains, played by virtual ranks of one GPU and by two GPUs, over mapped
// memory and over libfabric, against the oracle.
#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include <cuda_runtime_api.h>

#include <gtest/gtest.h>

#include "epistle/cuda.hpp"
#include "epistle/group.hpp"

#include "core/settings.hpp"
#include "fabric/fabric.hpp"
#include "support/bad_rank.hpp"
#include "support/cuda_devices.hpp"
#include "support/cuda_play.hpp"
#include "support/environment.hpp"
#include "support/named_scenarios.hpp"
#include "support/random_scenario.hpp"
#include "support/round_trip.hpp"
#include "support/scenario_text.hpp"

namespace epistle::testing {
namespace {

// ---- Virtual ranks --------------------------------------------------------------------------------------------------

/// How many ranks, and how many of them are in a domain.
struct Shape {
  int num_ranks;
  int domain_size;
};

std::vector<Shape> shapes() { return {{8, 4}, {8, 2}, {4, 2}, {4, 1}, {2, 1}}; }

std::string shape_name(const Shape& shape) {
  return std::to_string(shape.num_ranks) + "By" + std::to_string(shape.domain_size);
}

/// A named scenario, to be spread over domains of any shape.
std::vector<NamedScenario> scenarios_to_spread() { return scenarios_in_domains(4, 2); }

Scenario spread(const NamedScenario& named, const Shape& shape) {
  Scenario scenario = with_ranks(named.scenario, shape.num_ranks);
  scenario.domain_size = shape.domain_size;
  scenario.config.order = SumOrder::kDomains;
  return scenario;
}

using DomainsParam = std::tuple<NamedScenario, Shape>;

class CudaHybrid : public OnGpu<::testing::TestWithParam<DomainsParam>> {};

TEST_P(CudaHybrid, GivesTheBitsOfTheReference) {
  const auto& [named, shape] = GetParam();
  const Scenario scenario = spread(named, shape);
  if (const std::string reason = cannot_play("hybrid", scenario); !reason.empty()) GTEST_SKIP() << reason;
  for (const bool split_halves : {false, true}) {
    SCOPED_TRACE(split_halves ? "halves" : "fused");
    expect_play("hybrid", scenario, on_cuda({.device = 0}, split_halves));
    if (HasFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(All, CudaHybrid,
                         ::testing::Combine(::testing::ValuesIn(scenarios_to_spread()), ::testing::ValuesIn(shapes())),
                         [](const auto& param_info) {
                           return std::get<0>(param_info.param).name + "_" + shape_name(std::get<1>(param_info.param));
                         });

class CudaHybridParts : public OnGpu<> {};

/// Rows that make many chunks, and more than one domain in turn.
TEST_F(CudaHybridParts, PassOnChunksAsTheyArrive) {
  Scenario scenario;
  scenario.config = {.hidden = 16'384, .num_experts = 8, .top_k = 3, .max_tokens = 40};
  scenario.config.layout = ExpertMajor{.alignment = 8};
  scenario.config.order = SumOrder::kDomains;
  scenario.tokens_per_rank = {20, 3, 12, 33};
  scenario.num_rounds = 2;
  for (const int domain_size : {1, 2}) {
    scenario.domain_size = domain_size;
    expect_play("hybrid", scenario, on_cuda({.device = 0}));
  }
}

class CudaHybridRandom : public OnGpu<::testing::TestWithParam<int>> {};

TEST_P(CudaHybridRandom, MatchesTheOracle) {
  constexpr int kScenariosPerCase = 10;
  for (int idx = 0; idx < kScenariosPerCase; ++idx) {
    const auto seed = static_cast<std::uint64_t>(GetParam() * kScenariosPerCase + idx);
    Draw draw(~seed);
    const Shape shape = shapes()[static_cast<std::size_t>(draw.between(0, 4))];
    Scenario scenario = random_scenario(seed, {.num_ranks = shape.num_ranks});
    scenario.domain_size = shape.domain_size;
    scenario.config.order = SumOrder::kDomains;
    if (const std::string reason = cannot_play("hybrid", scenario); !reason.empty()) continue;
    const bool split_halves = draw.one_in(2);
    SCOPED_TRACE("seed " + std::to_string(seed) + ", " + shape_name(shape) + ": " + to_text(scenario));
    expect_play("hybrid", scenario, on_cuda({.device = 0}, split_halves));
    if (HasFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, CudaHybridRandom, ::testing::Range(0, 6));

// ---- The network ----------------------------------------------------------------------------------------------------

/// Rows cross by libfabric's tcp on this host.
class OverTcp {
 public:
  OverTcp() {
    environment_.set("EPISTLE_DOMAIN_LINK", "fabric");
    environment_.set("EPISTLE_FABRIC_PROVIDER", "tcp");
    reload_settings_for_testing();
  }
  ~OverTcp() {
    environment_.unset("EPISTLE_DOMAIN_LINK");
    environment_.unset("EPISTLE_FABRIC_PROVIDER");
    reload_settings_for_testing();
  }
  OverTcp(const OverTcp&) = delete;
  OverTcp& operator=(const OverTcp&) = delete;

  /// Why there is none; empty where there is.
  [[nodiscard]] static std::string missing() {
    try {
      static_cast<void>(choose_fabric_way({.provider = "tcp"}));
    } catch (const Error& error) {
      return std::string(error.message());
    }
    return {};
  }

 private:
  test::ScopedEnvironment environment_;
};

class CudaHybridOverTcp : public OnGpu<::testing::TestWithParam<NamedScenario>> {};

TEST_P(CudaHybridOverTcp, GivesTheBitsOfTheReferenceOnOneGpu) {
  const Scenario scenario = spread(GetParam(), {4, 2});
  if (const std::string reason = cannot_play("hybrid", scenario); !reason.empty()) GTEST_SKIP() << reason;
  if (const std::string reason = OverTcp::missing(); !reason.empty()) GTEST_SKIP() << reason;
  const OverTcp over_tcp;
  expect_play("hybrid", scenario, on_cuda({.device = 0}));
}

TEST_P(CudaHybridOverTcp, GivesTheBitsOfTheReferenceOnTwoGpus) {
  if (const std::string reason = missing_gpus(2); !reason.empty()) GTEST_SKIP() << reason;
  const Scenario scenario = spread(GetParam(), {2, 1});
  if (const std::string reason = cannot_play("hybrid", scenario); !reason.empty()) GTEST_SKIP() << reason;
  if (const std::string reason = OverTcp::missing(); !reason.empty()) GTEST_SKIP() << reason;
  const OverTcp over_tcp;
  expect_play("hybrid", scenario, on_cuda());
}

INSTANTIATE_TEST_SUITE_P(All, CudaHybridOverTcp, ::testing::ValuesIn(scenarios_to_spread()),
                         [](const auto& param_info) { return param_info.param.name; });

// ---- Bytes ----------------------------------------------------------------------------------------------------------

TEST_F(CudaHybridParts, PutOnLinksWhatTheLayoutPredicts) {
  for (const Shape& shape : shapes()) {
    SCOPED_TRACE(shape_name(shape));
    Scenario scenario = small_scenario();
    scenario.config.order = SumOrder::kDomains;
    scenario.config.top_k = 4;
    scenario.tokens_per_rank.assign(static_cast<std::size_t>(shape.num_ranks), 11);
    scenario.domain_size = shape.domain_size;
    std::vector<std::int64_t> returned(scenario.tokens_per_rank.size());
    std::vector<std::int64_t> predicted(scenario.tokens_per_rank.size());
    const auto check = [&](Group& group) {
      const auto rank = static_cast<std::size_t>(group.rank());
      const Round round(scenario, 0);
      const Checker checker(round);
      RankInputs inputs(round, group.rank());
      Subject subject(group, "hybrid", scenario.config, on_cuda({.device = 0}));
      const Handle handle = subject.prepare(inputs.prepare());
      const WireBytes wire = subject.dispatcher().wire_bytes(handle);
      EXPECT_GT(wire.dispatch_links.network, 0);
      EXPECT_EQ(wire.dispatch, wire.dispatch_links.domain + wire.dispatch_links.network);
      const Received received = subject.dispatch(inputs.dispatch(handle));
      const std::int64_t after_dispatch = subject.dispatcher().network_bytes();
      EXPECT_EQ(after_dispatch, wire.header_bytes + wire.dispatch_links.network);
      const Mismatch mismatch = check_combine(subject, checker, inputs, received, 9, /*stage=*/true);
      EXPECT_FALSE(mismatch.has_value()) << *mismatch;
      // A rank returns the sums of others.
      returned[rank] = subject.dispatcher().network_bytes() - after_dispatch;
      predicted[rank] = wire.combine_links.network;
    };
    run_thread_ranks(shape.num_ranks, check, {.timeout = kCudaTimeout, .domain_size = shape.domain_size});
    std::int64_t sum_returned = 0;
    std::int64_t sum_predicted = 0;
    for (std::size_t rank = 0; rank < returned.size(); ++rank) {
      sum_returned += returned[rank];
      sum_predicted += predicted[rank];
    }
    EXPECT_EQ(sum_returned, sum_predicted);
  }
}

// ---- Errors ---------------------------------------------------------------------------------------------------------

/// Four ranks in two domains, of which one makes mistakes.
Scenario two_domains() {
  Scenario scenario = small_scenario();
  scenario.config.order = SumOrder::kDomains;
  scenario.tokens_per_rank = {5, 8, 12, 3};
  scenario.domain_size = 2;
  return scenario;
}

TEST_F(CudaHybridParts, TellThePeersOfARefusedPayload) {
  const auto outcomes = call_on_all_ranks(
      "hybrid", two_domains(),
      [](const Caller& caller) {
        DispatchRequest request = caller.inputs.dispatch(caller.prepare());
        if (caller.rank == kBadRank) --request.tokens.num_rows;
        (void)caller.subject.dispatch(request);
      },
      on_cuda({.device = 0}));
  expect_rejected(outcomes, ErrorCode::kInvalidArgument);
}

TEST_F(CudaHybridParts, NameOtherCalls) {
  const auto outcomes = call_on_all_ranks(
      "hybrid", two_domains(),
      [](const Caller& caller) {
        const Handle handle = caller.prepare();
        if (caller.rank == kBadRank) {
          (void)caller.prepare();
          return;
        }
        (void)caller.subject.dispatch(caller.inputs.dispatch(handle));
      },
      on_cuda({.device = 0}));
  for (std::size_t rank = 0; rank < outcomes.by_rank.size(); ++rank) {
    ASSERT_TRUE(outcomes.by_rank[rank].has_value());
    EXPECT_EQ(outcomes.by_rank[rank]->code(), ErrorCode::kShapeMismatch) << outcomes.by_rank[rank]->what();
    EXPECT_FALSE(outcomes.afterwards[rank].has_value()) << *outcomes.afterwards[rank];
  }
}

TEST_F(CudaHybridParts, RefuseCopyEngines) {
  std::vector<Outcome> outcomes(2);
  run_thread_ranks(2,
                   [&](Group& group) {
                     outcomes[static_cast<std::size_t>(group.rank())] = outcome_of([&] {
                       (void)Dispatcher(group, "hybrid", small_scenario().config,
                                        CudaOptions{.device = 0, .mover = CudaMover::kCopyEngines});
                     });
                   },
                   {.timeout = kCudaTimeout, .domain_size = 1});
  for (const Outcome& outcome : outcomes) {
    ASSERT_TRUE(outcome.has_value());
    EXPECT_EQ(outcome->code(), ErrorCode::kUnsupported) << outcome->what();
    EXPECT_NE(std::string(outcome->what()).find("copy engines"), std::string::npos) << outcome->what();
  }
}

TEST_F(CudaHybridParts, RefuseToBeCaptured) {
  std::vector<Outcome> outcomes(2);
  Scenario scenario = small_scenario();
  scenario.config.order = SumOrder::kDomains;
  scenario.config.sizing = Capacity{.rows_per_rank = 64};
  scenario.tokens_per_rank = {5, 8};
  scenario.domain_size = 1;
  run_thread_ranks(2,
                   [&](Group& group) {
                     const Round round(scenario, 0);
                     RankInputs inputs(round, group.rank());
                     Subject subject(group, "hybrid", scenario.config, on_cuda({.device = 0}));
                     cudaStream_t stream = nullptr;
                     check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "creating a stream");
                     check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capturing");
                     outcomes[static_cast<std::size_t>(group.rank())] = outcome_of([&] {
                       (void)subject.dispatcher().prepare({.expert_ids = inputs.prepare().expert_ids}, Stream(stream));
                     });
                     cudaGraph_t graph = nullptr;
                     check_cuda(cudaStreamEndCapture(stream, &graph), "ending the capture");
                     if (graph != nullptr) check_cuda(cudaGraphDestroy(graph), "destroying a graph");
                     const Mismatch mismatch = round_trip(subject, Round(scenario, 1));
                     EXPECT_FALSE(mismatch.has_value()) << *mismatch;
                     // The stream stays: the dispatcher may ask it for its last work.
                   },
                   {.timeout = kCudaTimeout, .domain_size = scenario.domain_size});
  for (const Outcome& outcome : outcomes) {
    ASSERT_TRUE(outcome.has_value());
    EXPECT_EQ(outcome->code(), ErrorCode::kUnsupported) << outcome->what();
    EXPECT_NE(std::string(outcome->what()).find("captured"), std::string::npos) << outcome->what();
  }
}

}  // namespace
}  // namespace epistle::testing
