// Configurations that are refused, or that differ between ranks.
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "epistle/cuda.hpp"
#include "epistle/dispatcher.hpp"

#include "core/settings.hpp"
#include "dispatch/host/engine/row_kernels.hpp"
#include "support/bad_rank.hpp"
#include "support/environment.hpp"
#include "support/round_trip.hpp"

namespace epistle::testing {
namespace {

constexpr int kNumRanks = 3;

DispatcherConfig good_config() {
  DispatcherConfig config;
  config.hidden = 64;
  config.num_experts = 8;
  config.top_k = 2;
  config.max_tokens = 16;
  return config;
}

using Change = std::function<void(DispatcherConfig&)>;

/// How the one rank creates its dispatcher.
struct BadRankOptions {
  std::string name = "direct";
  HostOptions options = {};
};

/// What creating a dispatcher gives where one rank's configuration (or name) is another; afterwards all ranks create a
/// good one in the same group.
std::vector<Outcome> create_with_bad_rank(const Change& change, const BadRankOptions& bad = {}) {
  std::vector<Outcome> outcomes(kNumRanks);
  run_thread_ranks(kNumRanks, [&](Group& group) {
    DispatcherConfig config = good_config();
    const bool is_bad = group.rank() == kBadRank;
    if (is_bad) change(config);
    outcomes[static_cast<std::size_t>(group.rank())] = outcome_of(
        [&] { (void)Dispatcher(group, is_bad ? bad.name : "direct", config, is_bad ? bad.options : HostOptions{}); });
    const Dispatcher dispatcher(group, "direct", good_config());
    EXPECT_EQ(dispatcher.config().hidden, 64);
    EXPECT_EQ(dispatcher.info().name(), "direct");
    EXPECT_EQ(dispatcher.device_ordinal(), -1);
  });
  return outcomes;
}

void expect_config_refused(const std::vector<Outcome>& outcomes, ErrorCode code,
                           const std::vector<std::string>& parts) {
  for (int rank = 0; rank < kNumRanks; ++rank) {
    SCOPED_TRACE("rank " + std::to_string(rank));
    const Outcome& outcome = outcomes[static_cast<std::size_t>(rank)];
    ASSERT_TRUE(outcome.has_value());
    const std::string message = outcome->what();
    if (rank == kBadRank) {
      EXPECT_EQ(outcome->code(), code) << message;
    } else {
      EXPECT_EQ(outcome->code(), ErrorCode::kPeerRejected) << message;
      EXPECT_EQ(outcome->context().peer_rank, kBadRank);
      EXPECT_EQ(outcome->context().phase, Phase::kCreate);
    }
    for (const std::string& part : parts) {
      EXPECT_NE(message.find(part), std::string::npos) << "'" << part << "' is not in: " << message;
    }
  }
}

struct BadField {
  std::string name;
  Change change;
  std::vector<std::string> parts;
  ErrorCode code = ErrorCode::kInvalidArgument;
};

std::vector<BadField> bad_fields() {
  using Config = DispatcherConfig;
  return {
      {"HiddenZero", [](Config& c) { c.hidden = 0; }, {"hidden is 0", "between 1 and"}},
      {"HiddenHuge", [](Config& c) { c.hidden = std::numeric_limits<std::int64_t>::max(); }, {"hidden is", "between"}},
      {"HiddenUnaligned", [](Config& c) { c.hidden = 2881; }, {"2881 bf16", "5762 bytes", "multiple of 16", "to 2888"}},
      {"NoExperts", [](Config& c) { c.num_experts = 0; }, {"num_experts is 0", "between 1"}},
      {"MoreThanAnyModelsExperts",
       [](Config& c) { c.num_experts = std::numeric_limits<std::int32_t>::max(); },
       {"num_experts is 2147483647"}},
      {"TopKZero", [](Config& c) { c.top_k = 0; }, {"top_k is 0", "num_experts = 8"}},
      {"TopKBeyondExperts", [](Config& c) { c.top_k = 9; }, {"top_k is 9", "num_experts = 8"}},
      {"NegativeTokens", [](Config& c) { c.max_tokens = -1; }, {"max_tokens is -1"}},
      {"TokensHuge", [](Config& c) { c.max_tokens = std::numeric_limits<std::int64_t>::max(); }, {"max_tokens is"}},
      {"RowNumbersOverflow",
       [](Config& c) {
         c.max_tokens = std::int64_t{1} << 28;
         c.top_k = 8;
       },
       {"rows; row numbers end at 2147483647", "fewer tokens"}},
      {"AlignmentZero",
       [](Config& c) { c.layout = ExpertMajor{.alignment = 0}; },
       {"alignment is 0", "between 1 and 1024"}},
      {"AlignmentHuge", [](Config& c) { c.layout = ExpertMajor{.alignment = 1025}; }, {"alignment is 1025"}},
      {"NoBuffers", [](Config& c) { c.num_buffers = 0; }, {"num_buffers is 0", "between 1 and 8"}},
      {"ManyBuffers", [](Config& c) { c.num_buffers = 9; }, {"num_buffers is 9", "between 1 and 8"}},
      {"NoHandles", [](Config& c) { c.max_handles = 0; }, {"max_handles is 0", "between 1 and 4096"}},
      {"ManyHandles", [](Config& c) { c.max_handles = 4097; }, {"max_handles is 4097"}},
      {"ScalesOfBf16", [](Config& c) { c.raw_scale_bytes = 4; }, {"raw_scale_bytes is 4", "bf16"}},
      {"CapacityWithoutRows", [](Config& c) { c.sizing = Capacity{}; }, {"rows_per_rank is 0", "between 1 and"}},
      {"CapacityOfExpertBlocks",
       [](Config& c) {
         c.layout = ExpertBlocks{.rows_per_expert = 5};
         c.sizing = Capacity{.rows_per_rank = 5};
       },
       {"rows_per_rank is 5", "ExpertBlocks"}},
      {"BlocksWithoutRows", [](Config& c) { c.layout = ExpertBlocks{}; }, {"rows_per_expert is 0", "between 1 and"}},
      {"CapacityHuge",
       [](Config& c) { c.layout = ExpertBlocks{.rows_per_expert = std::numeric_limits<std::int64_t>::max()}; },
       {"rows_per_expert is 9223372036854775807"}},
      {"CombineInFp8",
       [](Config& c) { c.expert_output = DType::kFp8E4m3; },
       {"fp8", "cannot be summed"},
       ErrorCode::kUnsupported},
      {"OutputHiddenUnaligned", [](Config& c) { c.expert_output_hidden = 3; }, {"expert_output_hidden = 3", "to 8"}},
      {"OutputHiddenZero", [](Config& c) { c.expert_output_hidden = 0; }, {"expert_output_hidden is 0"}},
      {"QuantisedFp16",
       [](Config& c) {
         c.input = DType::kFp16;
         c.wire = Fp8Blocks{};
       },
       {"quantises rows of bf16", "input is fp16"},
       ErrorCode::kUnsupported},
      {"QuantisedToBytes",
       [](Config& c) { c.wire = Fp8Blocks{.scales = ScaleFormat::kBytes}; },
       {"Fp8Blocks::scales is bytes", "fp32 or ue8m0"}},
      {"QuantisedToNoFormat",
       [](Config& c) { c.wire = Fp8Blocks{.scales = static_cast<ScaleFormat>(9)}; },
       {"Fp8Blocks::scales has the value 9"}},
      {"QuantisedInNoOrder",
       [](Config& c) { c.wire = Fp8Blocks{.order = static_cast<ScaleOrder>(2)}; },
       {"Fp8Blocks::order has the value 2"}},
      {"PlacedOnOtherRanks",
       [](Config& c) {
         c.placement = Placement(8, {{0, 1, 2, 3, 4, 5, 6, 7}});
       },
       {"for 1 ranks", "the group has"}},
      {"PlacedInMoreSlotsThanThereAre", [](Config& c) { c.slots_per_rank = 1; }, {"room for 1", "slots_per_rank"}},
      {"SlotsNegative", [](Config& c) { c.slots_per_rank = -3; }, {"slots_per_rank is -3"}},
  };
}

class BadConfig : public ::testing::TestWithParam<BadField> {};

TEST_P(BadConfig, IsRefusedEverywhere) {
  expect_config_refused(create_with_bad_rank(GetParam().change), GetParam().code, GetParam().parts);
}

INSTANTIATE_TEST_SUITE_P(All, BadConfig, ::testing::ValuesIn(bad_fields()),
                         [](const auto& param_info) { return param_info.param.name; });

TEST(DispatcherConfigErrors, UnknownName) {
  expect_config_refused(create_with_bad_rank([](DispatcherConfig&) {}, {.name = "a-dispatcher-that-does-not-exist"}),
                        ErrorCode::kNotFound,
                        {"a-dispatcher-that-does-not-exist", "direct low_latency auto alltoall hybrid reference"});
}

// ---- Ranks that differ ----------------------------------------------------------------------------------------------

struct DifferingField {
  std::string name;
  Change change;
  std::string values;  ///< of rank 0 and of the rank that differs, as the message has them
};

std::vector<DifferingField> differing_fields() {
  using Config = DispatcherConfig;
  return {
      {"hidden", [](Config& c) { c.hidden = 128; }, "rank 0 has 64, rank 1 has 128"},
      {"input", [](Config& c) { c.input = DType::kFp16; }, "rank 0 has bf16, rank 1 has fp16"},
      {"wire", [](Config& c) { c.wire = Fp8Blocks{}; }, "rank 0 has AsGiven, rank 1 has Fp8Blocks"},
      {"num_experts", [](Config& c) { c.num_experts = 9; }, "rank 0 has 8, rank 1 has 9"},
      {"top_k", [](Config& c) { c.top_k = 1; }, "rank 0 has 2, rank 1 has 1"},
      {"max_tokens", [](Config& c) { c.max_tokens = 17; }, "rank 0 has 16, rank 1 has 17"},
      {"layout", [](Config& c) { c.layout = ExpertMajor{}; }, "rank 0 has token_major, rank 1 has expert_major"},
      {"sizing", [](Config& c) { c.sizing = Capacity{.rows_per_rank = 5}; }, "rank 0 has exact, rank 1 has capacity"},
      {"overflow", [](Config& c) { c.overflow = OverflowPolicy::kDrop; }, "rank 0 has error, rank 1 has drop"},
      {"order", [](Config& c) { c.order = SumOrder::kFlat; }, "rank 0 has hierarchical, rank 1 has flat"},
      {"apply_weights", [](Config& c) { c.apply_weights = false; }, "rank 0 has true, rank 1 has false"},
      {"zero_padding", [](Config& c) { c.zero_padding = false; }, "rank 0 has true, rank 1 has false"},
      {"expert_output", [](Config& c) { c.expert_output = DType::kFp32; }, "rank 0 has bf16, rank 1 has fp32"},
      {"expert_output_hidden", [](Config& c) { c.expert_output_hidden = 32; }, "rank 0 has 64, rank 1 has 32"},
      {"num_buffers", [](Config& c) { c.num_buffers = 2; }, "rank 0 has 1, rank 1 has 2"},
      {"max_handles", [](Config& c) { c.max_handles = 9; }, "rank 0 has 8, rank 1 has 9"},
      {"slots_per_rank", [](Config& c) { c.slots_per_rank = 5; }, "rank 0 has 0, rank 1 has 5"},
  };
}

class DifferingConfig : public ::testing::TestWithParam<DifferingField> {};

TEST_P(DifferingConfig, IsNamedOnAllRanks) {
  const auto outcomes = create_with_bad_rank(GetParam().change);
  for (const Outcome& outcome : outcomes) {
    ASSERT_TRUE(outcome.has_value());
    EXPECT_EQ(outcome->code(), ErrorCode::kShapeMismatch) << outcome->what();
    EXPECT_EQ(outcome->context().peer_rank, kBadRank);
    const std::string message = outcome->what();
    EXPECT_NE(message.find(GetParam().name + " differs"), std::string::npos) << message;
    EXPECT_NE(message.find(GetParam().values), std::string::npos) << message;
  }
}

INSTANTIATE_TEST_SUITE_P(All, DifferingConfig, ::testing::ValuesIn(differing_fields()),
                         [](const auto& param_info) { return param_info.param.name; });

TEST(DispatcherConfigErrors, PlacementsThatDifferAreNamed) {
  const std::vector<std::vector<std::int32_t>> slots = {{0, 1, 2, 3, 4}, {5, 6, 7, 0}};
  const std::vector<std::pair<Placement, std::string>> cases = {
      {Placement(8, slots, 2), "the placement's generation differs: rank 0 has 1, rank 1 has 2"},
      {Placement(8, {{0, 1, 2, 3, 4}, {5, 6, 7, 1}}, 1), "placement differs: rank 0 has one of hash "},
      {Placement(8, slots, 1, {.near_first = true}), "placement differs: rank 0 has one of hash "}};
  for (const auto& [placement, message] : cases) {
    run_thread_ranks(2, [&, &odd = placement, &expected = message](Group& group) {
      DispatcherConfig config = good_config();
      config.placement = group.rank() == 1 ? odd : Placement(8, slots, 1);
      const Outcome outcome = outcome_of([&] { (void)Dispatcher(group, "direct", config); });
      ASSERT_TRUE(outcome.has_value());
      EXPECT_EQ(outcome->code(), ErrorCode::kShapeMismatch);
      EXPECT_NE(std::string(outcome->what()).find(expected), std::string::npos) << outcome->what();
    });
  }
}

TEST(DispatcherConfigErrors, NumbersOfALayoutAreNamed) {
  struct Case {
    Layout usual;
    Layout odd;
    Sizing sizing;
    std::string message;
  };
  for (const Case& differing : {Case{ExpertMajor{.alignment = 1}, ExpertMajor{.alignment = 2}, Exact{},
                                     "alignment differs: rank 0 has 1, rank 1 has 2"},
                                Case{ExpertBlocks{.rows_per_expert = 7}, ExpertBlocks{.rows_per_expert = 8}, Capacity{},
                                     "capacity rows differs: rank 0 has 7, rank 1 has 8"}}) {
    run_thread_ranks(2, [&](Group& group) {
      DispatcherConfig config = good_config();
      config.layout = group.rank() == 1 ? differing.odd : differing.usual;
      config.sizing = differing.sizing;
      const Outcome outcome = outcome_of([&] { (void)Dispatcher(group, "direct", config); });
      ASSERT_TRUE(outcome.has_value());
      EXPECT_EQ(outcome->code(), ErrorCode::kShapeMismatch);
      EXPECT_NE(std::string(outcome->what()).find(differing.message), std::string::npos) << outcome->what();
    });
  }
}

TEST(DispatcherConfigErrors, FieldsOfTheWireAreNamed) {
  const std::vector<std::pair<Fp8Blocks, std::string>> cases = {
      {{.scales = ScaleFormat::kUe8m0, .powers_of_two = true},
       "Fp8Blocks::scales differs: rank 0 has fp32, rank 1 has ue8m0"},
      {{}, "Fp8Blocks::powers_of_two differs: rank 0 has true, rank 1 has false"},
      {{.powers_of_two = true, .order = ScaleOrder::kColumns},
       "Fp8Blocks::order differs: rank 0 has rows, rank 1 has columns"}};
  for (const auto& [wire, message] : cases) {
    run_thread_ranks(2, [&, &odd = wire, &expected = message](Group& group) {
      DispatcherConfig config = good_config();
      config.wire = group.rank() == 1 ? odd : Fp8Blocks{.powers_of_two = true};
      const Outcome outcome = outcome_of([&] { (void)Dispatcher(group, "direct", config); });
      ASSERT_TRUE(outcome.has_value());
      EXPECT_EQ(outcome->code(), ErrorCode::kShapeMismatch);
      EXPECT_NE(std::string(outcome->what()).find(expected), std::string::npos) << outcome->what();
    });
  }
}

// Exponents are powers of two, whatever the configuration says.
TEST(DispatcherConfigErrors, ExponentsNeedNotBeAskedToBePowersOfTwo) {
  run_thread_ranks(2, [&](Group& group) {
    DispatcherConfig config = good_config();
    config.wire = Fp8Blocks{.scales = ScaleFormat::kUe8m0, .powers_of_two = group.rank() == 1};
    const Outcome outcome = outcome_of([&] { (void)Dispatcher(group, "direct", config); });
    EXPECT_FALSE(outcome.has_value()) << outcome->what();
  });
}

TEST(DispatcherConfigErrors, DifferentDispatchersAreNamed) {
  const auto outcomes = create_with_bad_rank([](DispatcherConfig&) {}, {.name = "alltoall"});
  for (const Outcome& outcome : outcomes) {
    ASSERT_TRUE(outcome.has_value());
    EXPECT_EQ(outcome->code(), ErrorCode::kShapeMismatch);
    EXPECT_NE(std::string(outcome->what()).find("rank 0 has direct, rank 1 has alltoall"), std::string::npos)
        << outcome->what();
  }
}

TEST(DispatcherConfigErrors, WorkersMayDiffer) {
  for (const Outcome& outcome :
       create_with_bad_rank([](DispatcherConfig&) {}, {.options = HostOptions{.num_workers = 3}})) {
    EXPECT_FALSE(outcome.has_value()) << outcome->what();
  }
}

TEST(DispatcherConfigErrors, NumbersOfWorkersThatMakeNoSense) {
  for (const std::int32_t num_workers : {0, -1, 1'000'000}) {
    const auto outcomes =
        create_with_bad_rank([](DispatcherConfig&) {}, {.options = HostOptions{.num_workers = num_workers}});
    expect_config_refused(outcomes, ErrorCode::kInvalidArgument,
                          {"num_workers is " + std::to_string(num_workers), "between 1"});
  }
}

TEST(DispatcherConfigErrors, DeviceThatThisBuildLacks) {
  if (cuda_support().num_devices > 0) GTEST_SKIP() << "there is a GPU";
  run_thread_ranks(2, [&](Group& group) {
    const Outcome outcome = outcome_of([&] { (void)Dispatcher(group, "direct", good_config(), CudaOptions{}); });
    ASSERT_TRUE(outcome.has_value());
    EXPECT_EQ(outcome->code(), ErrorCode::kUnsupported) << outcome->what();
    // The group is not the worse for it.
    (void)Dispatcher(group, "direct", good_config());
  });
}

// ---- EPISTLE_SIMD ---------------------------------------------------------------------------------------------------

class SimdSetting : public ::testing::Test {
 protected:
  ~SimdSetting() override {
    environment_.unset("EPISTLE_SIMD");
    reload_settings_for_testing();
    host::configure_simd();
  }

  void set(const std::string& value) {
    environment_.set("EPISTLE_SIMD", value);
    reload_settings_for_testing();
  }

 private:
  test::ScopedEnvironment environment_;
};

TEST_F(SimdSetting, ChoosesTheTarget) {
  for (const std::string& name : host::simd_target_names()) {
    set(name);
    run_thread_ranks(2, [&](Group& group) { (void)Dispatcher(group, "direct", good_config()); });
    EXPECT_EQ(host::simd_target_name(), name);
  }
  const std::string best = host::simd_target_names().front();
  set("auto");
  run_thread_ranks(1, [&](Group& group) { (void)Dispatcher(group, "alltoall", good_config()); });
  EXPECT_EQ(host::simd_target_name(), best);
}

TEST_F(SimdSetting, UnknownTargetIsRefusedWhenADispatcherIsCreated) {
  set("MMX");
  run_thread_ranks(2, [&](Group& group) {
    const Outcome outcome = outcome_of([&] { (void)Dispatcher(group, "direct", good_config()); });
    ASSERT_TRUE(outcome.has_value());
    EXPECT_EQ(outcome->code(), ErrorCode::kInvalidArgument);
    const std::string message = outcome->what();
    EXPECT_NE(message.find("'MMX'"), std::string::npos) << message;
    EXPECT_NE(message.find("EPISTLE_SIMD"), std::string::npos) << message;
    EXPECT_NE(message.find("auto"), std::string::npos) << message;
  });
}

}  // namespace
}  // namespace epistle::testing
