// Loads of the busiest rank where a benchmark draws the popularity of experts from a power law.
#include "cost/power_law.hpp"

#include <variant>

#include <gtest/gtest.h>

#include "cost/fit/calibration.hpp"

namespace epistle::test {
namespace {

GemmShape shape_of(double tokens, double ranks) {
  return {
      .global_tokens = tokens, .num_ranks = ranks, .num_experts = 128, .top_k = 8, .hidden = 4096, .expert_ffn = 1536};
}

TEST(PowerLaw, OneRankHasAllRows) { EXPECT_NEAR(power_law_load(shape_of(4096, 1), 1.2).rows, 4096 * 8, 1); }

TEST(PowerLaw, TheBusiestOfMoreRanksIsFurtherFromTheAverage) {
  double factor = 1.0;
  for (const double ranks : {4.0, 16.0, 64.0}) {
    const double rows = power_law_load(shape_of(4096, ranks), 1.2).rows;
    EXPECT_GT(rows * ranks / (4096 * 8), 1.2 * factor) << ranks;
    factor = rows * ranks / (4096 * 8);
    EXPECT_LE(rows, 4096 * 128 / ranks);  // no expert gets a token twice
  }
}

TEST(PowerLaw, IsEvenWhereTheExponentMakesAllAlike) {
  // So steep that all draws are at the low end.
  const RankLoad load = power_law_load(shape_of(4096, 16), 9.0);
  EXPECT_NEAR(load.rows, 4096 * 8 / 16.0, 0.35 * 4096 * 8 / 16);
  EXPECT_NEAR(load.active_experts, 8, 1e-6);
}

TEST(PowerLaw, FewTokensReachFewExperts) {
  const RankLoad load = power_law_load(shape_of(1, 4), 1.01);
  EXPECT_GE(load.active_experts, 1);
  EXPECT_LE(load.active_experts, load.rows);
  EXPECT_LE(load.rows, 8);
}

TEST(PowerLaw, OfATableIsAnotherWorkAndANewQuestion) {
  const std::string header =
      "system,framework,kernel,moe_dtype,hidden,inter,topk,num_experts,ep_size,distribution,global_tokens,latency_us\n";
  const std::string line = "h100_sxm,a,b,fp8,4096,1536,8,128,16,";
  const MeasurementTable table =
      parse_measurements(header + line + "balanced,4096,232\n" + line + "power_law_1.2,4096,400\n" + line +
                             "power_law_1.2_eplb,4096,240\n",
                         "g.csv");
  ASSERT_EQ(table.times.size(), 3U);
  const auto work = [&](std::size_t idx) { return std::get<GemmWork>(table.times[idx].observation.work); };
  EXPECT_GT(work(1).rows, 1.5 * work(0).rows);
  EXPECT_EQ(work(2).rows, work(0).rows);
  EXPECT_TRUE(table.left_out.empty());
  MeasurementTable even = table;
  even.times.resize(1);
  const Calibration calibration(std::vector<MeasurementTable>{even});
  const Forecast skewed = calibration.predict(table.times[1].curve, table.times[1].observation);
  EXPECT_EQ(skewed.novelty, Novelty::kLibrary);
  EXPECT_GT(skewed.us, calibration.predict(table.times[0].curve, table.times[0].observation).us);
}

}  // namespace
}  // namespace epistle::test
