// What can be asked of dispatchers without a group or a GPU.
#include "epistle/dispatcher_info.hpp"

#include <algorithm>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "epistle/error.hpp"
#include "epistle/group.hpp"

#include "dispatch/call/dispatcher_functions.hpp"
#include "support/round_trip.hpp"

namespace epistle::testing {
namespace {

DispatcherConfig served_config() { return {.hidden = 64, .num_experts = 8, .top_k = 2, .max_tokens = 16}; }

template <typename Value>
bool contains(const std::vector<Value>& values, Value value) {
  return std::find(values.begin(), values.end(), value) != values.end();
}

TEST(DispatcherInfos, NamesAreUniqueOnADevice) {
  std::set<std::pair<std::string, Device>> seen;
  for (const DispatcherInfo* info : dispatchers()) {
    EXPECT_TRUE(seen.emplace(info->name(), info->device()).second) << info->name();
    EXPECT_FALSE(info->summary().empty()) << info->name();
    EXPECT_EQ(&find_dispatcher(info->name(), info->device()), info);
  }
  EXPECT_FALSE(seen.empty());
}

TEST(DispatcherInfos, HostAndCudaAreThereInEveryBuild) {
  for (const char* name : {"direct", "alltoall"}) {
    EXPECT_EQ(find_dispatcher(name).device(), Device::kHost);
    EXPECT_EQ(find_dispatcher(name, Device::kCuda).device(), Device::kCuda);
  }
  EXPECT_EQ(find_dispatcher("reference").name(), "reference");
  EXPECT_TRUE(find_dispatcher("alltoall", Device::kCuda).capabilities().one_rank_per_gpu);
  EXPECT_TRUE(find_dispatcher("direct", Device::kCuda).capabilities().graph_capture);
  EXPECT_FALSE(find_dispatcher("alltoall", Device::kCuda).capabilities().graph_capture);
}

/// What is said of options by a dispatcher that has all that is asked for by options, or nothing of it.
Outcome outcome_of_options(bool can_do_all, const DeviceOptions& options) {
  static const DispatcherInfo::Functions functions;
  Capabilities can;
  can.row_flags = can_do_all;
  can.copy_engines = can_do_all;
  const DispatcherInfo info("some", Device::kCuda, "of this test", can, functions);
  return outcome_of([&] { check_options(info, options); });
}

TEST(DispatcherInfos, OptionsBeyondCapabilitiesAreRefusedByName) {
  for (const auto& [options, name] : {std::pair{CudaOptions{.row_flags = true}, "CudaOptions::row_flags"},
                                      std::pair{CudaOptions{.mover = CudaMover::kCopyEngines}, "CudaOptions::mover"}}) {
    EXPECT_FALSE(outcome_of_options(true, options).has_value()) << name;
    const Outcome refused = outcome_of_options(false, options);
    ASSERT_TRUE(refused.has_value()) << name;
    EXPECT_EQ(refused->code(), ErrorCode::kUnsupported);
    EXPECT_NE(refused->message().find(name), std::string_view::npos) << refused->what();
    EXPECT_NE(refused->message().find("'some'"), std::string_view::npos) << refused->what();
  }
  EXPECT_FALSE(outcome_of_options(false, CudaOptions{}).has_value());
  EXPECT_FALSE(outcome_of_options(false, HostOptions{}).has_value());
}

TEST(DispatcherInfos, OneRaisesFlagsOfRowsAndOneUsesCopyEngines) {
  for (const DispatcherInfo* info : dispatchers()) {
    const bool on_cuda = info->device() == Device::kCuda;
    EXPECT_EQ(info->capabilities().row_flags, on_cuda && info->name() == "low_latency") << info->name();
    const bool has_direct = info->name() == "direct" || info->name() == "auto";
    EXPECT_EQ(info->capabilities().copy_engines, on_cuda && has_direct) << info->name();
  }
}

TEST(DispatcherInfos, WhatTheBuildLacksIsWhyNoneIsMade) {
  for (const DispatcherInfo* info : dispatchers()) {
    const std::string missing(info->capabilities().missing);
    if (info->device() == Device::kHost) {
      EXPECT_EQ(missing, "") << info->name();
      continue;
    }
    if (missing.empty()) continue;
    run_thread_ranks(1, [&](Group& group) {
      const Outcome made = outcome_of([&] { Dispatcher(group, info->name(), served_config(), CudaOptions{}); });
      ASSERT_TRUE(made.has_value()) << info->name();
      EXPECT_EQ(made->code(), ErrorCode::kUnsupported) << made->what();
      EXPECT_EQ(made->message(), missing);
    });
  }
}

TEST(DispatcherInfos, UnknownNameGivesThoseThereAre) {
  const Outcome outcome = outcome_of([] { (void)find_dispatcher("telepathy"); });
  ASSERT_TRUE(outcome.has_value());
  EXPECT_EQ(outcome->code(), ErrorCode::kNotFound);
  for (const char* part : {"telepathy", "host", "direct", "alltoall", "reference"}) {
    EXPECT_NE(std::string(outcome->what()).find(part), std::string::npos) << outcome->what();
  }
}

// ---- Capabilities against what is refused ---------------------------------------------------------------------------

class CannotServe : public ::testing::TestWithParam<const DispatcherInfo*> {
 protected:
  static const DispatcherInfo& info() { return *GetParam(); }

  /// `served`: what the capabilities say.
  static void expect_served(const DispatcherConfig& config, bool served, const std::string& what, int num_ranks = 4) {
    const auto reason = info().cannot_serve(config, num_ranks);
    EXPECT_EQ(!reason.has_value(), served) << what << ": " << reason.value_or("can be served");
    const Outcome planned = outcome_of([&] { (void)info().memory(config, num_ranks); });
    EXPECT_EQ(planned.has_value(), reason.has_value()) << what;
    if (!reason) return;
    EXPECT_FALSE(reason->empty());
    ASSERT_TRUE(planned.has_value());
    EXPECT_TRUE(planned->code() == ErrorCode::kUnsupported || planned->code() == ErrorCode::kInvalidArgument);
  }
};

TEST_P(CannotServe, FollowsTheCapabilities) {
  const Capabilities& can = info().capabilities();
  for (const OutputLayout layout :
       {OutputLayout::kTokenMajor, OutputLayout::kExpertMajor, OutputLayout::kExpertBlocks}) {
    for (const SizingMode sizing : {SizingMode::kExact, SizingMode::kCapacity}) {
      DispatcherConfig config = served_config();
      set_layout(config, layout, sizing, 100);
      const bool sized = sizing == SizingMode::kExact ? can.exact_sizing : can.capacity_sizing;
      expect_served(config, contains(can.layouts, layout) && sized,
                    std::string(to_string(layout)) + ", " + std::string(to_string(sizing)));
    }
  }
  DispatcherConfig usual = served_config();
  if (!can.exact_sizing) usual.sizing = Capacity{.rows_per_rank = 100};
  for (const SumOrder order : {SumOrder::kHierarchical, SumOrder::kFlat, SumOrder::kDeepEpV2, SumOrder::kDomains}) {
    DispatcherConfig config = usual;
    config.order = order;
    expect_served(config, contains(can.orders, order), std::string(to_string(order)));
  }
  for (const DType input : {DType::kBf16, DType::kFp16, DType::kFp32, DType::kFp8E4m3, DType::kRaw}) {
    DispatcherConfig config = usual;
    config.input = input;
    expect_served(config, contains(can.inputs, input), std::string(to_string(input)));
  }
  DispatcherConfig quantised = usual;
  quantised.wire = Fp8Blocks{};
  expect_served(quantised, can.quantises, "rows that are quantised on their way");
  for (const ScaleOrder order : {ScaleOrder::kRows, ScaleOrder::kColumns}) {
    quantised.wire = Fp8Blocks{.order = order};
    expect_served(quantised, can.quantises && contains(can.scale_orders, order),
                  "scales in " + std::string(to_string(order)));
  }
  if (can.max_ranks > 0) expect_served(usual, false, "more ranks than it takes", can.max_ranks + 1);
  if (can.max_top_k > 0) {
    DispatcherConfig wide = usual;
    wide.num_experts = 2 * can.max_top_k;
    wide.top_k = can.max_top_k;
    expect_served(wide, true, "as many experts for each token as it takes");
    ++wide.top_k;
    expect_served(wide, false, "more experts for each token than it takes");
  }
  if (can.max_tokens > 0) {
    DispatcherConfig many = usual;
    many.max_tokens = can.max_tokens + 1;
    expect_served(many, false, "more tokens than it takes");
  }
}

TEST_P(CannotServe, WhatNobodyCan) {
  const auto expect_reason = [](const DispatcherConfig& config, const std::string& part, int num_ranks = 4) {
    const auto reason = info().cannot_serve(config, num_ranks);
    ASSERT_TRUE(reason.has_value()) << part;
    EXPECT_NE(reason->find(part), std::string::npos) << *reason;
  };
  DispatcherConfig config = served_config();
  config.top_k = 9;
  expect_reason(config, "top_k is 9");
  config = served_config();
  config.hidden = 2881;
  expect_reason(config, "multiple of 16");
  expect_reason(served_config(), "0 ranks", 0);
}

TEST_P(CannotServe, NoPlacementThatIsOneOfItsExperts) {
  EXPECT_TRUE(info().capabilities().placement);
  DispatcherConfig config = served_config();
  config.placement = Placement(8, {{0, 1, 2, 3, 7}, {4, 5, 6, 7}});
  expect_served(config, true, "an expert with two copies", 2);
  expect_served(config, false, "a placement for other ranks", 3);
  config.slots_per_rank = 4;
  expect_served(config, false, "fewer slots than the placement has", 2);
  config.placement = {};
  expect_served(config, true, "placements to come", 2);
}

TEST_P(CannotServe, PlansAreSumsOfSections) {
  for (const int num_ranks : {1, 2, 16}) {
    const MemoryPlan plan = info().memory(served_config(), num_ranks);
    std::int64_t initial_bytes = 0;
    std::int64_t largest_bytes = 0;
    for (const MemorySection& section : plan.sections) {
      EXPECT_FALSE(section.name.empty());
      EXPECT_GE(section.initial_bytes, 0) << section.name;
      EXPECT_LE(section.initial_bytes, section.largest_bytes) << section.name;
      initial_bytes += section.initial_bytes;
      largest_bytes += section.largest_bytes;
    }
    std::int64_t initial_of_kinds = 0;
    std::int64_t largest_of_kinds = 0;
    for (const MemoryKind kind : {MemoryKind::kShared, MemoryKind::kPrivate, MemoryKind::kPinnedHost}) {
      initial_of_kinds += plan.initial_bytes(kind);
      largest_of_kinds += plan.largest_bytes(kind);
    }
    EXPECT_EQ(initial_of_kinds, initial_bytes);
    EXPECT_EQ(largest_of_kinds, largest_bytes);
    EXPECT_GT(plan.largest_bytes(MemoryKind::kShared), 0);
  }
}

INSTANTIATE_TEST_SUITE_P(All, CannotServe, ::testing::ValuesIn(dispatchers()), [](const auto& param_info) {
  return std::string(to_string(param_info.param->device())) + "_" + std::string(param_info.param->name());
});

// ---- Memory that options and hosts ask for
// ---------------------------------------------------------------------------

DispatcherConfig decode_config() {
  return {.hidden = 64,
          .num_experts = 8,
          .top_k = 2,
          .max_tokens = 16,
          .layout = ExpertBlocks{.rows_per_expert = 64},
          .sizing = Capacity{},
          .num_buffers = 2};
}

std::int64_t private_bytes(const MemoryPlan& plan) { return plan.largest_bytes(MemoryKind::kPrivate); }

TEST(MemoryOfOptions, FlagsOfRowsAreCountedToTheByte) {
  const DispatcherInfo& info = find_dispatcher("low_latency", Device::kCuda);
  const MemoryPlan without = info.memory(decode_config(), {.num_ranks = 4});
  const MemoryPlan with = info.memory(decode_config(), {.num_ranks = 4, .options = CudaOptions{.row_flags = true}});
  // Of 2 buffers, 4 sources and 2 experts, in steps of 256 bytes: 16 arrivals of 16 bytes; 8 counts; 2 x 2 x 64 rows; 2
  // numbers.
  EXPECT_EQ(private_bytes(with) - private_bytes(without), 256 + 256 + 1024 + 256);
  EXPECT_EQ(with.largest_bytes(MemoryKind::kShared), without.largest_bytes(MemoryKind::kShared));
}

TEST(MemoryOfOptions, RowsForTheCopyEnginesAreTakenWhenTheyArePacked) {
  const DispatcherInfo& info = find_dispatcher("direct", Device::kCuda);
  const MemoryQuery engines{.num_ranks = 4, .options = CudaOptions{.mover = CudaMover::kCopyEngines}};
  const MemoryPlan without = info.memory(served_config(), {.num_ranks = 4});
  const MemoryPlan with = info.memory(served_config(), engines);
  // A token goes to two ranks at most: 32 rows of 64 bf16.
  EXPECT_EQ(private_bytes(with) - private_bytes(without), 32 * 64 * 2);
  EXPECT_EQ(with.initial_bytes(MemoryKind::kPrivate), without.initial_bytes(MemoryKind::kPrivate));
  EXPECT_GT(with.largest_bytes(MemoryKind::kPinnedHost), without.largest_bytes(MemoryKind::kPinnedHost));
}

TEST(MemoryOfOptions, MirrorsOfRanksOfOtherHostsAreCounted) {
  for (const char* const name : {"alltoall", "hybrid"}) {
    const DispatcherInfo& info = find_dispatcher(name, Device::kCuda);
    const MemoryPlan one = info.memory(served_config(), {.num_ranks = 4, .domain_size = 2});
    const MemoryPlan two = info.memory(served_config(), {.num_ranks = 4, .domain_size = 2, .num_hosts = 2});
    const MemoryPlan four = info.memory(served_config(), {.num_ranks = 4, .domain_size = 1, .num_hosts = 4});
    const MemoryPlan alone = info.memory(served_config(), {.num_ranks = 4, .domain_size = 1});
    EXPECT_GT(private_bytes(two), private_bytes(one)) << name;
    // Three ranks are elsewhere in place of two; the rest is there once.
    const std::int64_t counters = 8 * served_config().num_experts;
    EXPECT_EQ((private_bytes(four) - private_bytes(alone) - counters) * 2,
              (private_bytes(two) - private_bytes(one) - counters) * 3)
        << name;
    EXPECT_EQ(two.largest_bytes(MemoryKind::kShared), one.largest_bytes(MemoryKind::kShared)) << name;
  }
}

std::int64_t bytes_from_allocator(const MemoryPlan& plan) {
  std::int64_t bytes = 0;
  for (const MemorySection& section : plan.sections) bytes += section.from_allocator ? section.largest_bytes : 0;
  return bytes;
}

TEST(MemoryOfOptions, WhatAnAllocatorIsAskedForIsWhatARankHasForItself) {
  for (const DispatcherInfo* const info : dispatchers()) {
    const MemoryQuery query{.num_ranks = 4, .domain_size = 2};
    const MemoryPlan plan = info->memory(served_config(), query);
    const bool on_gpu = info->device() == Device::kCuda;
    EXPECT_EQ(bytes_from_allocator(plan), on_gpu ? private_bytes(plan) : 0) << info->name();
    if (on_gpu) {
      EXPECT_GT(private_bytes(plan), 0) << info->name();
    }
  }
  // Peers of this host have its rows in their mirrors of other hosts: that is the heap's.
  const DispatcherInfo& info = find_dispatcher("alltoall", Device::kCuda);
  const MemoryPlan one = info.memory(served_config(), {.num_ranks = 4, .domain_size = 2});
  const MemoryPlan two = info.memory(served_config(), {.num_ranks = 4, .domain_size = 2, .num_hosts = 2});
  const std::int64_t counters = 8 * served_config().num_experts;
  EXPECT_EQ(bytes_from_allocator(two), bytes_from_allocator(one) + counters);
}

TEST(MemoryOfOptions, AnAllocatorTakesWhatItGives) {
  for (const char* const missing : {"free", "allocate"}) {
    CudaOptions options;
    if (missing == std::string("free")) {
      options.allocator.allocate = [](std::int64_t, int, Stream) -> void* { return nullptr; };
    } else {
      options.allocator.free = [](void*, std::int64_t, int, Stream) {};
    }
    const Outcome outcome = outcome_of_options(true, options);
    ASSERT_TRUE(outcome.has_value());
    EXPECT_EQ(outcome->code(), ErrorCode::kInvalidArgument);
    EXPECT_NE(std::string(outcome->what()).find("'" + std::string(missing) + "'"), std::string::npos)
        << outcome->what();
  }
}

TEST(MemoryOfOptions, AutoOfFewTokensTakesThatOfLowLatencyAlone) {
  const MemoryPlan plan = find_dispatcher("auto", Device::kCuda).memory(decode_config(), 4);
  const MemoryPlan expected = find_dispatcher("low_latency", Device::kCuda).memory(decode_config(), 4);
  ASSERT_EQ(plan.sections.size(), expected.sections.size());
  for (std::size_t idx = 0; idx < plan.sections.size(); ++idx) {
    EXPECT_EQ(plan.sections[idx].name, expected.sections[idx].name);
    EXPECT_EQ(plan.sections[idx].largest_bytes, expected.sections[idx].largest_bytes) << plan.sections[idx].name;
  }
}

TEST(MemoryOfOptions, WhatCannotBeIsRefused) {
  const auto refusal = [](const char* name, const MemoryQuery& query) {
    const Outcome outcome =
        outcome_of([&] { (void)find_dispatcher(name, Device::kCuda).memory(served_config(), query); });
    return outcome.has_value() ? outcome->code() : ErrorCode::kOk;
  };
  EXPECT_EQ(refusal("direct", {.num_ranks = 4, .options = CudaOptions{.row_flags = true}}), ErrorCode::kUnsupported);
  EXPECT_EQ(refusal("direct", {.num_ranks = 3, .num_hosts = 2}), ErrorCode::kInvalidArgument);
  EXPECT_EQ(refusal("direct", {.num_ranks = 3, .num_hosts = 0}), ErrorCode::kInvalidArgument);
  EXPECT_EQ(refusal("direct", {.num_ranks = 3, .num_hosts = 3}), ErrorCode::kUnsupported) << "it joins no hosts";
}

}  // namespace
}  // namespace epistle::testing
