#include "cost/fit/families.hpp"

#include <algorithm>
#include <string>
#include <utility>

#include <fmt/format.h>

#include "epistle/error.hpp"

namespace epistle {
namespace {

using CurveWork = std::variant<ExchangeWork, GemmWork>;

constexpr std::string_view kOwnAnalysis =
    "own fits to measurements of ai-dynamo/aiconfigurator (Apache-2.0) on H100 and GB200, 2026-11";

// What cards of 400 Gbit/s reach of their line with large messages. Set after a look at what throughput at EP 32 left
// over (docs/calibrate.md); no source of its own.
constexpr double kLargeMessageEfficiency = 0.92;

/// The sizes of a curve's constants that differ between the families of exchanges; factor 1 holds one fixed.
struct ExchangePriors {
  double start_us = 10;
  double row_pass_us_per_byte = 1e-9;
  double row_pass_factor = 1;
  double rank_doubling_us = 0.01;
  double rank_doubling_factor = 1;
  double network_us = 5;
  double domain_doubling_us = 4;
  double row_sm_us = 1e-4;
  double row_sm_factor = 1;
  double sm_bytes_per_us = 1e9;
  double sm_factor = 1;
  double domain_row_share = 1;
  double domain_row_factor = 1;
  double link_efficiency = 0.7;
  double link_loss_per_doubling = 1e-3;
  double link_loss_factor = 1;
  double network_efficiency = 0.9;
  double network_factor = 1.2;
  double self_share = 1;
  double self_factor = 1;
  double overlap_norm = 1;
  double overlap_factor = 1;
  double start_norm = 1;
  double start_norm_factor = 1;
  double token_row_share = 1e-4;
  double token_row_factor = 1;
  double domain_doubling_factor = 2;
  double far_domain_us = 0.01;
  double far_domain_factor = 1;
  double counts_domain_us = 0.01;
  double counts_domain_factor = 1;
  double host_wait_us = 0.01;
  double host_wait_factor = 1;
};

std::vector<ConstantPrior> exchange_constants(const ExchangePriors& priors) {
  constexpr double kWide = 2.0;
  return {
      {"start_us", "us", priors.start_us, kWide, "any run with 1 to 8 tokens"},
      {"row_pass_us_per_byte", "us/byte", priors.row_pass_us_per_byte, priors.row_pass_factor,
       "1 to 8 tokens of two widths of rows"},
      {"rank_doubling_us", "us", priors.rank_doubling_us, priors.rank_doubling_factor,
       "1 to 8 tokens at two numbers of ranks inside a domain"},
      {"network_us", "us", priors.network_us, kWide, "1 to 8 tokens inside a domain and across two"},
      {"domain_doubling_us", "us", priors.domain_doubling_us, priors.domain_doubling_factor,
       "1 to 8 tokens across 2 and across 4 domains"},
      {"row_sm_us", "us", priors.row_sm_us, priors.row_sm_factor,
       "4096 tokens or more of two widths of rows with 8 SMs"},
      {"sm_bytes_per_us", "bytes/us", priors.sm_bytes_per_us, priors.sm_factor,
       "4096 tokens or more with 8 SMs and with 20"},
      {"domain_row_share", "1", priors.domain_row_share, priors.domain_row_factor,
       "4096 tokens or more with 8 SMs inside a domain and across two"},
      {"link_efficiency", "1", priors.link_efficiency, 1.4, "4096 tokens or more inside a domain with many SMs"},
      {"link_loss_per_doubling", "1", priors.link_loss_per_doubling, priors.link_loss_factor,
       "4096 tokens or more at two numbers of ranks inside a domain"},
      {"network_efficiency", "1", priors.network_efficiency, priors.network_factor,
       "4096 tokens or more across four domains with many SMs"},
      {"self_share", "1", priors.self_share, priors.self_factor, "4096 tokens or more at 2 and at 8 ranks of a domain"},
      {"overlap_norm", "1", priors.overlap_norm, priors.overlap_factor, "4096 tokens or more at three numbers of SMs"},
      {"start_norm", "1", priors.start_norm, priors.start_norm_factor, "ten numbers of tokens from 1 to 4096"},
      {"token_row_share", "1", priors.token_row_share, priors.token_row_factor,
       "4096 tokens or more with 8 SMs across two domains and across four"},
      {"far_domain_us", "us", priors.far_domain_us, priors.far_domain_factor,
       "1 to 8 tokens across 2 and across 4 domains"},
      {"counts_domain_us", "us", priors.counts_domain_us, priors.counts_domain_factor,
       "1 to 8 tokens across 2 and across 4 domains, the exchange of counts by itself"},
      {"host_wait_us", "us", priors.host_wait_us, priors.host_wait_factor,
       "one shape with exact sizing and with capacity sizing"}};
}

double exchange_us(const CurveWork& work, std::span<const double> constants) {
  return exchange_time(std::get<ExchangeWork>(work), exchange_terms(constants)).total_us;
}

double gemm_us(const CurveWork& work, std::span<const double> constants) {
  return gemm_time(std::get<GemmWork>(work), gemm_terms(constants)).total_us;
}

CurveFamily make_exchange(std::string_view name, const ExchangePriors& priors) {
  return {.name = name,
          .source = kOwnAnalysis,
          .constants = exchange_constants(priors),
          .quantities = {"tokens", "ranks", "sms", "row bytes", "experts", "crossing"},
          .num_varied = 1,
          .scales = {.lengths = {2, 3, 2, 4, 8, 1}, .level_sigmas = {0.05, 0.05, 0.05, 0.05}, .noise_sigma = 0.03},
          .time_us = exchange_us};
}

/// Of DeepEP: priors were fitted together, to several GPUs, versions and numbers of ranks (docs/tuning/forecasts.md).
CurveFamily make_deepep(std::string_view name, const ExchangePriors& priors) {
  CurveFamily family = make_exchange(name, priors);
  family.doubt = 0.6;
  return family;
}

/// Rates from its authors alone.
CurveFamily make_peer(std::string_view name, const ExchangePriors& priors) {
  CurveFamily family = make_exchange(name, priors);
  family.source = "HybridEP's README on B200 and GB200, 2026-07: 16 SMs move 599 to 735 GB/s";
  return family;
}

/// A dispatcher of Epistle, measured by epistle bench.
CurveFamily make_own(std::string_view name, const ExchangePriors& priors) {
  CurveFamily family = make_exchange(name, priors);
  family.source = "records of epistle bench on H200, 2026-11; across domains the priors of the peers";
  return family;
}

CurveFamily make_collective(std::string_view name) {
  CurveFamily family = make_exchange(name, {.start_us = 6,
                                            .rank_doubling_us = 2,
                                            .rank_doubling_factor = 2,
                                            .link_efficiency = 0.8,
                                            .self_share = 0.5,
                                            .self_factor = 3,
                                            .start_norm = 1.2,
                                            .start_norm_factor = 1.2});
  family.quantities = {"bytes", "ranks"};
  family.scales = {.lengths = {2, 4}, .level_sigmas = {0.1, 0.05, 0.05}, .noise_sigma = 0.03};
  return family;
}

CurveFamily make_gemm(std::string_view name, double compute_efficiency) {
  return {.name = name,
          .source = kOwnAnalysis,
          .constants = {{"start_us", "us", 30, 2, "a run with 1 to 16 tokens where a rank has one or two experts"},
                        {"compute_efficiency", "1", compute_efficiency, 1.6, "8192 tokens or more"},
                        {"tile_rows", "rows", 64, 2, "1 to 64 rows per expert, in small steps"},
                        {"weight_efficiency", "1", 0.85, 1.1, "16 to 256 tokens where a rank has 32 experts or more"},
                        {"activation_efficiency", "1", 0.5, 1.6, "4096 tokens of a model with narrow experts"},
                        {"global_row_share", "1", 0.05, 4, "16384 tokens at 16 ranks or more"},
                        {"overlap_norm", "1", 3, 1.5, "rows per expert around the ridge of the GPU"},
                        {"cached_byte_share", "1", 0.3, 2, "16 tokens where the weights of a rank fit its cache"}},
          .quantities = {"tokens", "rows per expert", "ranks", "hidden", "expert ffn", "experts"},
          .num_varied = 2,
          .scales = {.lengths = {2, 3, 3, 3, 3, 4}, .level_sigmas = {0.1, 0.1, 0.1, 0.05, 0.05}, .noise_sigma = 0.03},
          // Kernels differ by half of a time and more (docs/tuning/forecasts.md).
          .field_knows_priors = false,
          .time_us = gemm_us};
}

/// Exchanges of libraries for which tables are known.
std::vector<CurveFamily> make_measured_families() {
  return {
      make_deepep("low_latency dispatch", {.start_us = 14.7,
                                           .domain_doubling_us = 4.7,
                                           .link_efficiency = 0.64,
                                           .self_share = 0.3,
                                           .self_factor = 2,
                                           .overlap_norm = 1.8,
                                           .overlap_factor = 1.4,
                                           .start_norm = 1.2,
                                           .start_norm_factor = 1.3}),
      make_deepep("low_latency combine", {.start_us = 11.3,
                                          .network_us = 9.9,
                                          .domain_doubling_us = 2.1,
                                          .link_efficiency = 0.54,
                                          .self_share = 0.3,
                                          .self_factor = 2,
                                          .overlap_norm = 1.8,
                                          .overlap_factor = 1.4,
                                          .start_norm = 1.2,
                                          .start_norm_factor = 1.3}),
      make_deepep("throughput dispatch", {.start_us = 26,
                                          .network_us = 20,
                                          .domain_doubling_us = 0.01,
                                          .row_sm_us = 0.1,
                                          .row_sm_factor = 2,
                                          .sm_bytes_per_us = 22000,
                                          .sm_factor = 1.5,
                                          .domain_row_factor = 2,
                                          .link_efficiency = 0.73,
                                          .network_efficiency = kLargeMessageEfficiency,
                                          .network_factor = 1.07,
                                          .self_share = 0.3,
                                          .self_factor = 2,
                                          .overlap_norm = 6,
                                          .overlap_factor = 1.5,
                                          .start_norm = 1.2,
                                          .start_norm_factor = 1.3,
                                          .token_row_share = 1,
                                          .token_row_factor = 2,
                                          .domain_doubling_factor = 1,
                                          .far_domain_us = 6,
                                          .far_domain_factor = 2,
                                          .counts_domain_us = 10,
                                          .counts_domain_factor = 2}),
      make_deepep("throughput combine", {.start_us = 23,
                                         .row_pass_us_per_byte = 1.7e-3,
                                         .row_pass_factor = 1.5,
                                         .network_us = 20,
                                         .domain_doubling_us = 0.01,
                                         .row_sm_us = 0.05,
                                         .row_sm_factor = 2,
                                         .sm_bytes_per_us = 20000,
                                         .sm_factor = 1.5,
                                         .domain_row_share = 2.5,
                                         .domain_row_factor = 2,
                                         .link_efficiency = 0.73,
                                         .network_efficiency = kLargeMessageEfficiency,
                                         .network_factor = 1.07,
                                         .self_share = 0.3,
                                         .self_factor = 2,
                                         .overlap_norm = 6,
                                         .overlap_factor = 1.5,
                                         .start_norm = 1.2,
                                         .start_norm_factor = 1.3,
                                         .token_row_share = 1,
                                         .token_row_factor = 2,
                                         .domain_doubling_factor = 1,
                                         .far_domain_us = 6,
                                         .far_domain_factor = 2,
                                         .counts_domain_us = 10,
                                         .counts_domain_factor = 2}),
      make_exchange("one_sided dispatch", {.start_us = 13.5,
                                           .rank_doubling_us = 1.28,
                                           .rank_doubling_factor = 2,
                                           .link_efficiency = 0.85,
                                           .link_loss_per_doubling = 0.063,
                                           .link_loss_factor = 2,
                                           .self_share = 0.3,
                                           .self_factor = 3,
                                           .start_norm = 1.4,
                                           .start_norm_factor = 1.3}),
      make_exchange("one_sided combine", {.start_us = 20,
                                          .rank_doubling_us = 1.5,
                                          .rank_doubling_factor = 2,
                                          .link_efficiency = 0.74,
                                          .link_loss_per_doubling = 0.018,
                                          .link_loss_factor = 2,
                                          .self_share = 0.3,
                                          .self_factor = 3,
                                          .start_norm = 1.6,
                                          .start_norm_factor = 1.3}),
      make_exchange("two_sided prepare",
                    {.start_us = 12, .rank_doubling_us = 0.8, .rank_doubling_factor = 2, .link_efficiency = 0.01}),
      make_exchange("two_sided dispatch", {.start_us = 11,
                                           .rank_doubling_us = 0.8,
                                           .rank_doubling_factor = 2,
                                           .row_sm_us = 5,
                                           .row_sm_factor = 2,
                                           .link_efficiency = 0.65,
                                           .link_loss_per_doubling = 0.02,
                                           .link_loss_factor = 2,
                                           .self_share = 0.3,
                                           .self_factor = 3,
                                           .overlap_norm = 4,
                                           .overlap_factor = 1.5,
                                           .start_norm = 1.3,
                                           .start_norm_factor = 1.3}),
      make_exchange("two_sided combine", {.start_us = 12,
                                          .rank_doubling_us = 1,
                                          .rank_doubling_factor = 2,
                                          .link_efficiency = 0.6,
                                          .link_loss_per_doubling = 0.02,
                                          .link_loss_factor = 2,
                                          .self_share = 0.6,
                                          .self_factor = 3,
                                          .start_norm = 1.3,
                                          .start_norm_factor = 1.3}),
  };
}

ExchangePriors hybrid_priors(double start_us, double sm_bytes_per_us, double link_efficiency) {
  return {.start_us = start_us,
          .network_us = 20,
          .domain_doubling_us = 10,
          .row_sm_us = 0.02,
          .row_sm_factor = 2,
          .sm_bytes_per_us = sm_bytes_per_us,
          .sm_factor = 1.3,
          .link_efficiency = link_efficiency,
          .self_share = 0.3,
          .self_factor = 2,
          .overlap_norm = 6,
          .overlap_factor = 1.5,
          .start_norm = 1.2,
          .start_norm_factor = 1.2};
}

// What more ranks add to the start of a call is known of two ranks only, where it is none.
constexpr double kOwnRankDoublingUs = 0.5;
constexpr double kOwnRankDoublingFactor = 3;

ExchangePriors direct_priors(ExchangePriors priors) {
  priors.rank_doubling_us = kOwnRankDoublingUs;
  priors.rank_doubling_factor = kOwnRankDoublingFactor;
  priors.host_wait_us = 15;
  priors.host_wait_factor = 1.5;
  priors.row_sm_us = 0.02;
  priors.row_sm_factor = 2;
  priors.sm_factor = 1.3;
  priors.self_share = 0.05;
  priors.self_factor = 2;
  priors.overlap_norm = 6;
  priors.overlap_factor = 1.5;
  priors.start_norm = 1.2;
  priors.start_norm_factor = 1.2;
  return priors;
}

ExchangePriors low_latency_priors(double start_us) {
  return {.start_us = start_us,
          .rank_doubling_us = kOwnRankDoublingUs,
          .rank_doubling_factor = kOwnRankDoublingFactor,
          .row_sm_us = 0.5,
          .row_sm_factor = 3,
          .sm_bytes_per_us = 20000,
          .sm_factor = 2,
          .link_efficiency = 0.7,
          .self_share = 0.2,
          .self_factor = 2,
          .overlap_norm = 3,
          .overlap_factor = 1.5,
          .start_norm = 1.6,
          .start_norm_factor = 1.4};
}

std::vector<CurveFamily> make_families() {
  std::vector<CurveFamily> families = make_measured_families();
  for (CurveFamily& family : std::vector<CurveFamily>{
           make_peer("hybrid dispatch", hybrid_priors(30, 46000, 0.82)),
           make_peer("hybrid combine", hybrid_priors(35, 42000, 0.75)),
           make_own("direct dispatch",
                    direct_priors({.start_us = 33, .sm_bytes_per_us = 47000, .link_efficiency = 0.8})),
           make_own("direct combine",
                    direct_priors({.start_us = 9, .sm_bytes_per_us = 45000, .link_efficiency = 0.75})),
           // Blocks of experts, most of them hardly filled: every block is looked at.
           make_own("direct_blocks dispatch",
                    direct_priors({.start_us = 55, .sm_bytes_per_us = 47000, .link_efficiency = 0.8})),
           make_own("direct_blocks combine",
                    direct_priors({.start_us = 40, .sm_bytes_per_us = 45000, .link_efficiency = 0.75})),
           // The host starts copies of rows that follow each other, once it has the counts.
           make_own("direct_copies dispatch",
                    direct_priors({.start_us = 230, .sm_bytes_per_us = 47000, .link_efficiency = 0.8})),
           make_own("direct_copies combine",
                    direct_priors({.start_us = 9, .sm_bytes_per_us = 45000, .link_efficiency = 0.75})),
           // A row for every expert: copies besides what travels.
           make_own("direct_experts dispatch",
                    direct_priors({.start_us = 40, .sm_bytes_per_us = 38000, .link_efficiency = 0.8})),
           make_own("direct_experts combine",
                    direct_priors({.start_us = 9, .sm_bytes_per_us = 28000, .link_efficiency = 0.75})),
           make_own("epistle_low_latency dispatch", low_latency_priors(7)),
           make_own("epistle_low_latency combine", low_latency_priors(5)),
           make_own("epistle_hybrid dispatch", hybrid_priors(30, 46000, 0.82)),
           make_own("epistle_hybrid combine", hybrid_priors(35, 42000, 0.75)),
           make_collective("all_gather"),
           make_collective("alltoall"),
           make_collective("reduce_scatter"),
           make_gemm("gemm bf16", 0.63),
           make_gemm("gemm fp8", 0.45),
           make_gemm("gemm fp8_block", 0.45),
           make_gemm("gemm fp4", 0.3),
       }) {
    families.push_back(std::move(family));
  }
  return families;
}

}  // namespace

double crossing_position(const ExchangeWork& work) noexcept { return work.num_domains > 1 ? 1.0 : 0.0; }

ExchangeTerms exchange_terms(std::span<const double> constants) noexcept {
  return {.start_us = constants[0],
          .row_pass_us_per_byte = constants[1],
          .rank_doubling_us = constants[2],
          .network_us = constants[3],
          .domain_doubling_us = constants[4],
          .host_wait_us = constants[17],
          .far_domain_us = constants[15],
          .counts_domain_us = constants[16],
          .row_sm_us = constants[5],
          .sm_bytes_per_us = constants[6],
          .domain_row_share = constants[7],
          .token_row_share = constants[14],
          .link_efficiency = constants[8],
          .link_loss_per_doubling = constants[9],
          .network_efficiency = constants[10],
          .self_share = constants[11],
          .overlap_norm = std::max(constants[12], 1.0),
          .start_norm = std::max(constants[13], 1.0)};
}

GemmTerms gemm_terms(std::span<const double> constants) noexcept {
  return {.start_us = constants[0],
          .compute_efficiency = constants[1],
          .tile_rows = constants[2],
          .weight_efficiency = constants[3],
          .activation_efficiency = constants[4],
          .global_row_share = constants[5],
          .overlap_norm = std::max(constants[6], 1.0),
          .cached_byte_share = constants[7]};
}

std::span<const CurveFamily> curve_families() {
  static const std::vector<CurveFamily> families = make_families();
  return families;
}

const CurveFamily& find_curve_family(std::string_view name) {
  for (const CurveFamily& family : curve_families()) {
    if (family.name == name) return family;
  }
  throw Error(ErrorCode::kNotFound, fmt::format("there is no curve '{}'", name));
}

}  // namespace epistle
