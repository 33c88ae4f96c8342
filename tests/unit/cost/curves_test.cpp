#include "cost/curves.hpp"

#include <array>
#include <cmath>

#include <gtest/gtest.h>

#include "cost/fit/families.hpp"
#include "cost/switch_reduction.hpp"
#include "cost/work.hpp"

namespace epistle::test {
namespace {

ExchangeWork some_work(double tokens) {
  const Cluster& cluster = find_cluster("h100-hgx");
  return throughput_work(exchange_base(cluster, 16, cluster.gpus_per_domain()),
                         {.tokens_per_rank = tokens,
                          .num_ranks = 16,
                          .top_k = 8,
                          .distinct_ranks = 6.5,
                          .distinct_domains = 2,
                          .row_bytes = 7392},
                         20);
}

std::vector<double> prior_values(const CurveFamily& family) {
  std::vector<double> values;
  for (const ConstantPrior& prior : family.constants) values.push_back(prior.value);
  return values;
}

TEST(Curves, OverlapLiesBetweenTheLargestAndTheSum) {
  EXPECT_DOUBLE_EQ(overlapped_us(1, 2, 3, 5), 10);
  EXPECT_NEAR(overlapped_us(200, 2, 3, 5), 5, 1e-6);
  EXPECT_EQ(overlapped_us(4, 0, 0), 0);
  EXPECT_NEAR(overlapped_us(30, 1e200, 1e200), 1e200 * std::pow(2.0, 1.0 / 30), 1e188);
}

TEST(Curves, WorkKeepsItsBytes) {
  const ExchangeWork work = some_work(100);
  EXPECT_EQ(work.num_domains, 2);
  EXPECT_DOUBLE_EQ(work.link_bytes + work.self_bytes, 100 * 6.5 * 7392);
  EXPECT_DOUBLE_EQ(work.network_bytes, 100 * 7392);
}

// A time does not depend on the unit of its amounts: twice the bytes at twice the rates take as long.
TEST(Curves, UnitsCancel) {
  const ExchangeTerms terms = exchange_terms(prior_values(find_curve_family("throughput dispatch")));
  ExchangeWork work = some_work(4096);
  const ExchangeTimes times = exchange_time(work, terms);
  constexpr double kUnit = 1024;  // bytes counted in KiB
  ExchangeTerms other = terms;
  other.sm_bytes_per_us /= kUnit;
  other.row_pass_us_per_byte *= kUnit;
  for (double* const amount : {&work.row_bytes, &work.link_bytes, &work.self_bytes, &work.network_bytes,
                               &work.link_bytes_per_us, &work.network_bytes_per_us}) {
    *amount /= kUnit;
  }
  EXPECT_NEAR(exchange_time(work, other).total_us / times.total_us, 1.0, 1e-12);
}

TEST(Curves, TimesGrowWithWorkAndShrinkWithRates) {
  for (const CurveFamily& family : curve_families()) {
    if (family.name.starts_with("gemm")) continue;
    SCOPED_TRACE(family.name);
    const ExchangeTerms terms = exchange_terms(prior_values(family));
    const double few_us = exchange_time(some_work(64), terms).total_us;
    ExchangeWork work = some_work(4096);
    const double many_us = exchange_time(work, terms).total_us;
    EXPECT_GT(few_us, 0);
    EXPECT_GT(many_us, few_us);
    work.link_bytes_per_us *= 2;
    work.network_bytes_per_us *= 2;
    EXPECT_LE(exchange_time(work, terms).total_us, many_us);
  }
}

TEST(SwitchReduction, PaysOnlyWhereTokensGoToAlmostAllRanks) {
  // Top 8 of 256 experts: 3.6 of 4 ranks, 5.3 of 8, 6.5 of 16.
  for (const auto& [ranks, distinct, factor] :
       {std::array{4.0, 3.62, 1.1}, std::array{8.0, 5.29, 1.51}, std::array{16.0, 6.45, 2.48}}) {
    const SwitchReduction reduction = switch_reduction(ranks, distinct, 128, 2 * 7168);
    EXPECT_NEAR(reduction.factor(), factor, 0.02);
    EXPECT_FALSE(reduction.pays());
    EXPECT_NEAR(reduction.served_bytes, (ranks - 1) * 128 * 2 * 7168, 1e-6);
  }
  // A tensor that every rank has a part of, as under tensor parallelism: as many bytes, and the switch adds.
  EXPECT_NEAR(switch_reduction(8, 8, 128, 2).factor(), 1.0, 1e-12);
  EXPECT_TRUE(switch_reduction(8, 8, 128, 2).pays());
  EXPECT_TRUE(switch_reduction(2, 1.995, 128, 2).pays());
}

GemmShape some_experts(double global_tokens, double num_ranks, ExpertType type) {
  return {.global_tokens = global_tokens,
          .num_ranks = num_ranks,
          .num_experts = 128,
          .top_k = 8,
          .hidden = 4096,
          .expert_ffn = 1536,
          .type = type};
}

TEST(Curves, SmallGroupedGemmsReadWeightsLargeOnesCompute) {
  const Cluster& cluster = find_cluster("h100-hgx");
  GemmShape shape = some_experts(64, 8, ExpertType::kBf16);
  const GemmTerms terms = gemm_terms(prior_values(find_curve_family("gemm bf16")));
  const GemmTimes small = gemm_time(gemm_work(cluster, shape), terms);
  EXPECT_GT(small.weights_us, small.compute_us);
  // Sixteen experts of 37.7 MB at 3.35 TB/s are 180 us, read as fast as memory goes.
  EXPECT_NEAR(small.weights_us * terms.weight_efficiency, 180, 2);
  shape.global_tokens = 65536;
  const GemmTimes large = gemm_time(gemm_work(cluster, shape), terms);
  EXPECT_GT(large.compute_us, large.weights_us);
  shape.type = ExpertType::kFp8;
  EXPECT_DOUBLE_EQ(gemm_work(cluster, shape).weight_bytes_per_element, 1.0);
}

TEST(Curves, RowsOfGroupedGemmsAreMovedByKernelsOfTheirOwn) {
  const GemmTerms terms = gemm_terms(prior_values(find_curve_family("gemm bf16")));
  GemmShape shape = some_experts(16384, 16, ExpertType::kBf16);
  const GemmTimes times = gemm_time(gemm_work(find_cluster("h100-hgx"), shape), terms);
  const double multiplied_us = overlapped_us(terms.overlap_norm, times.compute_us, times.weights_us);
  EXPECT_DOUBLE_EQ(times.total_us, times.fixed_us + multiplied_us + times.activations_us);
}

TEST(Curves, MeasuredAgainAndAgainSmallWeightsStayInTheCacheAndAStepOfAModelReadsThem) {
  const Cluster& cluster = find_cluster("h100-hgx");
  const GemmTerms terms = gemm_terms(prior_values(find_curve_family("gemm fp8")));
  GemmShape shape = some_experts(64, 64, ExpertType::kFp8);
  GemmWork repeated = gemm_work(cluster, shape);
  const double once_us = gemm_time(repeated, terms).weights_us;
  repeated.cache_bytes = cache_bytes(cluster);
  const double fits_us = gemm_time(repeated, terms).weights_us;  // 38 MB of 50
  EXPECT_LT(fits_us, 0.7 * once_us);
  EXPECT_GT(fits_us, terms.cached_byte_share * once_us);
  repeated.active_experts *= 4;
  EXPECT_GT(gemm_time(repeated, terms).weights_us, 0.99 * 4 * once_us);
  EXPECT_EQ(cache_bytes(find_cluster("unknown")), 0.0);
}

}  // namespace
}  // namespace epistle::test
