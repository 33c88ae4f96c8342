// Placements: what is refused, and where experts and their copies lie.
#include "epistle/placement.hpp"

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <sys/resource.h>

#include <gtest/gtest.h>

#include "epistle/error.hpp"

namespace epistle {
namespace {

using Slots = std::vector<std::vector<std::int32_t>>;

std::vector<std::int32_t> list(std::span<const std::int32_t> values) { return {values.begin(), values.end()}; }
std::vector<SlotRef> list(std::span<const SlotRef> values) { return {values.begin(), values.end()}; }

TEST(Placement, DefaultIsTrivial) {
  const Placement placement;
  EXPECT_TRUE(placement.is_trivial());
  EXPECT_EQ(placement.generation(), 0U);
  EXPECT_EQ(placement, Placement());
}

TEST(Placement, KnowsItsSlots) {
  // Expert 1 is hot and has three copies; rank 2 holds nothing; the slots of rank 3 are not in order.
  const Placement placement(5, Slots{{0, 1}, {1, 2}, {}, {4, 1, 3}}, /*generation=*/7);
  EXPECT_FALSE(placement.is_trivial());
  EXPECT_EQ(placement.generation(), 7U);
  EXPECT_EQ(placement.num_experts(), 5);
  EXPECT_EQ(placement.num_ranks(), 4);
  EXPECT_EQ(placement.num_slots(), 7);
  EXPECT_EQ(list(placement.experts_of(0)), (std::vector<std::int32_t>{0, 1}));
  EXPECT_EQ(list(placement.experts_of(1)), (std::vector<std::int32_t>{1, 2}));
  EXPECT_EQ(list(placement.experts_of(2)), (std::vector<std::int32_t>{}));
  EXPECT_EQ(list(placement.experts_of(3)), (std::vector<std::int32_t>{4, 1, 3}));
  EXPECT_EQ(list(placement.replicas_of(0)), (std::vector<SlotRef>{{0, 0}}));
  EXPECT_EQ(list(placement.replicas_of(1)), (std::vector<SlotRef>{{0, 1}, {1, 0}, {3, 1}}));
  EXPECT_EQ(list(placement.replicas_of(2)), (std::vector<SlotRef>{{1, 1}}));
  EXPECT_EQ(list(placement.replicas_of(3)), (std::vector<SlotRef>{{3, 2}}));
  EXPECT_EQ(list(placement.replicas_of(4)), (std::vector<SlotRef>{{3, 0}}));
}

TEST(Placement, EverySlotIsAReplicaAndBack) {
  const Slots slots{{3, 0, 5}, {1, 2}, {0, 4, 5, 1}, {5}};
  const Placement placement(6, slots);
  std::int32_t num_replicas = 0;
  for (std::int32_t expert = 0; expert < 6; ++expert) {
    for (const SlotRef& slot : placement.replicas_of(expert)) {
      EXPECT_EQ(placement.experts_of(slot.rank)[static_cast<std::size_t>(slot.local_slot)], expert);
      ++num_replicas;
    }
  }
  EXPECT_EQ(num_replicas, placement.num_slots());
}

// 8 GB would be taken for as many counters.
TEST(Placement, TakesNoMemoryForExpertsThatNobodyHas) {
  const auto peak_kib = [] {
    rusage usage{};
    ::getrusage(RUSAGE_SELF, &usage);
    return usage.ru_maxrss;
  };
  const auto before = peak_kib();
  for (const Slots& slots : {Slots{{0}}, Slots{{0, 2}, {1, 2'000'000'000}}, Slots{{}}}) {
    try {
      const Placement placement(std::numeric_limits<std::int32_t>::max(), slots);
      ADD_FAILURE() << "expected an error";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
      EXPECT_NE(error.message().find("has no slot; every expert needs one"), std::string::npos) << error.what();
    }
  }
  EXPECT_LT(peak_kib() - before, 1L << 20);
}

TEST(Placement, EqualsByValue) {
  const Placement placement(2, Slots{{0}, {1}}, 1);
  EXPECT_EQ(placement, Placement(2, Slots{{0}, {1}}, 1));
  EXPECT_NE(placement, Placement(2, Slots{{1}, {0}}, 1));
  EXPECT_NE(placement, Placement(2, Slots{{0}, {1}}, 2));
  EXPECT_NE(placement, Placement());
}

TEST(Placement, KnowsItsChoice) {
  const ReplicaChoice choice{
      .quotas = {{1.0, 0.25}, {0.75}}, .near_first = true, .domain_of_rank = {0, 1}, .max_imbalance = 0.05};
  const Placement placement(2, Slots{{0, 1}, {1}}, 3, choice);
  EXPECT_EQ(placement.choice(), choice);
  EXPECT_EQ(placement.max_slots_per_rank(), 2);
  EXPECT_NE(placement, Placement(2, Slots{{0, 1}, {1}}, 3));
}

struct BadChoice {
  std::string name;
  ReplicaChoice choice;
  std::vector<std::string> parts;  ///< of the message
};

class BadChoices : public ::testing::TestWithParam<BadChoice> {};

TEST_P(BadChoices, AreRefused) {
  try {
    const Placement placement(2, Slots{{0, 1}, {1}}, 0, GetParam().choice);
    FAIL() << "was made, with " << placement.num_slots() << " slots";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    for (const std::string& part : GetParam().parts) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << "no '" << part << "' in: " << error.what();
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, BadChoices,
    ::testing::Values(BadChoice{"QuotasOfOtherRanks", {.quotas = {{1.0, 1.0}}}, {"1 ranks", "of 2"}},
                      BadChoice{"QuotasOfOtherSlots", {.quotas = {{1.0}, {1.0}}}, {"rank 0", "2 slots", "1 quotas"}},
                      BadChoice{"QuotaNegative", {.quotas = {{1.0, -0.5}, {1.0}}}, {"rank 0", "-0.5"}},
                      BadChoice{"QuotaNotANumber", {.quotas = {{1.0, 1.0}, {NAN}}}, {"rank 1"}},
                      BadChoice{"ExpertWithoutQuota", {.quotas = {{1.0, 0.0}, {0.0}}}, {"expert 1", "quota 0"}},
                      BadChoice{"DomainsOfOtherRanks", {.domain_of_rank = {0, 0, 0}}, {"3 ranks"}},
                      BadChoice{"DomainNegative", {.domain_of_rank = {0, -1}}, {"domain -1"}},
                      BadChoice{"DomainTooLarge", {.domain_of_rank = {0, 2}}, {"domain 2"}},
                      BadChoice{"ImbalanceNegative", {.max_imbalance = -0.1}, {"max_imbalance", "-0.1"}}),
    [](const auto& param_info) { return param_info.param.name; });

struct BadPlacement {
  std::string name;
  std::int32_t num_experts;
  Slots slots;
  std::vector<std::string> parts;  ///< of the message
};

class BadPlacements : public ::testing::TestWithParam<BadPlacement> {};

TEST_P(BadPlacements, AreRefused) {
  try {
    const Placement placement(GetParam().num_experts, GetParam().slots);
    FAIL() << "was made, with " << placement.num_slots() << " slots";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    for (const std::string& part : GetParam().parts) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << "no '" << part << "' in: " << error.what();
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, BadPlacements,
                         ::testing::Values(BadPlacement{"ExpertWithoutASlot", 3, {{0}, {2}}, {"expert 1", "no slot"}},
                                           BadPlacement{
                                               "IdTooLarge", 2, {{0, 1}, {2}}, {"rank 1", "expert 2", "0 to 1"}},
                                           BadPlacement{"IdNegative", 2, {{0, -1}, {1}}, {"rank 0", "expert -1"}},
                                           BadPlacement{"TwiceOnARank", 2, {{0}, {1, 0, 1}}, {"rank 1", "expert 1"}},
                                           BadPlacement{"NoExperts", 0, {{}}, {"0 experts"}},
                                           BadPlacement{"NegativeExperts", -4, {{}}, {"-4 experts"}},
                                           BadPlacement{"NoRanks", 2, {}, {"no ranks"}}),
                         [](const auto& param_info) { return param_info.param.name; });

}  // namespace
}  // namespace epistle
