// Quotas of a batch on a GPU: microseconds of the kernel as the stream sees them, and what the host takes for the same.
// Placements are planned on loads, and batches are drawn from loads that have drifted since.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include <cuda_runtime_api.h>

#include <fmt/format.h>

#include "epistle/cuda.hpp"

#include "balance/batch_quotas.hpp"
#include "balance/planner.hpp"
#include "dispatch/call/placed_experts.hpp"
#include "dispatch/call/resolved_config.hpp"
#include "dispatch/cuda/quotas/batch_quotas.hpp"
#include "gpu/cuda_error.hpp"
#include "gpu/stream.hpp"
#include "layout/batch_shares.hpp"
#include "measure/clock.hpp"
#include "measure/cuda/captured_graph.hpp"
#include "measure/cuda/timed_event.hpp"
#include "routing/philox.hpp"

namespace epistle::bench {
namespace {

constexpr int kNumPlacements = 24;
constexpr int kRunsPerGraph = 20;
constexpr double kAssignmentsPerRank = 4096.0 * 8.0;

struct Case {
  std::int32_t num_experts;
  std::int32_t num_ranks;
  std::int32_t num_slots;
  double drift;  ///< lognormal sigma between what was planned on and the batch
};

struct Figures {
  std::vector<double> gpu_us;
  std::vector<double> early_us;  ///< of launches that overlap the end of what is before them, as in dispatch
  std::vector<double> host_us;
  std::vector<double> phases;
  double worst = 1.0;  ///< exact optimum over the fullest rank here, of all placements
  double mean_of_optimum = 0.0;
};

double normal(PhiloxStream& stream) {
  constexpr double kTwoPi = 6.283185307179586;
  const auto uniform = [&] { return static_cast<double>(stream.next_u32()) / 4294967296.0; };
  const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform()));
  return radius * std::cos(kTwoPi * uniform());
}

std::vector<double> lognormal(std::uint32_t number, std::int32_t num_experts) {
  PhiloxStream stream(1, RandomAddress{.token = number});
  std::vector<double> loads(static_cast<std::size_t>(num_experts));
  for (double& load : loads) load = std::exp(0.6 * normal(stream));
  return loads;
}

std::vector<std::int64_t> batch_of(const std::vector<double>& loads, const Case& shape, std::uint32_t number) {
  PhiloxStream stream(2, RandomAddress{.token = number});
  std::vector<double> drifted(loads);
  double total = 0.0;
  for (double& load : drifted) total += load *= std::exp(shape.drift * normal(stream));
  std::vector<std::int64_t> tokens;
  for (const double load : drifted) {
    const double mean = load / total * shape.num_ranks * kAssignmentsPerRank;
    tokens.push_back(static_cast<std::int64_t>(std::max(0.0, mean + std::sqrt(mean) * normal(stream))));
  }
  return tokens;
}

/// Device memory for as long as the program runs.
template <typename Value>
Value* allocate(std::size_t count) {
  void* memory = nullptr;
  cuda::check_cuda(cudaMalloc(&memory, count * sizeof(Value)), "allocating");
  return static_cast<Value*>(memory);
}

/// `room` values, of which the first are `values`.
template <typename Value>
std::remove_const_t<Value>* to_device(std::span<Value> values, std::size_t room) {
  auto* const memory = allocate<std::remove_const_t<Value>>(room);
  cuda::check_cuda(cudaMemcpy(memory, values.data(), values.size_bytes(), cudaMemcpyHostToDevice), "copying");
  return memory;
}

/// Of one launch, in a graph of some.
double time_us(const cuda::BatchQuotasArgs& args, cudaStream_t stream) {
  const CapturedGraph graph(stream, [&] {
    for (int run = 0; run < kRunsPerGraph; ++run) cuda::check_cuda(launch_batch_quotas(args, stream), "launching");
  });
  graph.launch(stream);
  TimedEvent begin;
  TimedEvent end;
  begin.record(stream);
  graph.launch(stream);
  end.record(stream);
  return end.us_since(begin) / kRunsPerGraph;
}

void measure(const Case& shape, std::uint32_t number, Figures& figures) {
  balance::PlanRequest request;
  request.windows = {lognormal(number, shape.num_experts)};
  request.cluster = balance::Cluster::even(shape.num_ranks, shape.num_slots);
  const balance::Plan plan = plan_placement(request);
  const Placement placement = plan.placement.to_placement(shape.num_experts, 1, plan.quotas);
  const ResolvedConfig config = resolve_config(
      {.hidden = 64, .num_experts = shape.num_experts, .top_k = 8, .max_tokens = 4096, .placement = placement},
      shape.num_ranks);
  const std::vector<std::int64_t> tokens = batch_of(request.windows.front(), shape, number);

  const PlacedExperts placed(placement, config, shape.num_ranks, 0);
  cuda::SlotTables slots;
  slots.replica_begin = to_device(placed.replica_begin(), placed.replica_begin().size());
  slots.entries = to_device(
      placed.entries(), static_cast<std::size_t>(shape.num_ranks) * static_cast<std::size_t>(config.slots_per_rank));
  cudaStream_t stream = cuda::private_stream(0);
  auto* const device_tokens = to_device(std::span(tokens), tokens.size());
  auto* const rank_tokens = allocate<std::int64_t>(static_cast<std::size_t>(shape.num_ranks));
  const cuda::BatchQuotasArgs args{.slots = slots,
                                   .expert_tokens = device_tokens,
                                   .rank_tokens = rank_tokens,
                                   .num_experts = shape.num_experts,
                                   .num_ranks = shape.num_ranks,
                                   .slots_per_rank = config.slots_per_rank};
  cuda::check_cuda(load_batch_quotas(args), "loading the kernel");
  figures.gpu_us.push_back(time_us(args, stream));
  cuda::BatchQuotasArgs early = args;
  early.early_start = true;
  figures.early_us.push_back(time_us(early, stream));

  BatchShares host(placed.replica_begin(), placed.entries(), shape.num_ranks);
  host.solve(tokens);
  const double start = steady_now_us();
  for (int run = 0; run < kRunsPerGraph; ++run) host.solve(tokens);
  figures.host_us.push_back((steady_now_us() - start) / kRunsPerGraph);
  figures.phases.push_back(host.num_phases());

  std::vector<std::int64_t> loads(static_cast<std::size_t>(shape.num_ranks));
  cuda::check_cuda(cudaMemcpy(loads.data(), rank_tokens, loads.size() * sizeof(loads[0]), cudaMemcpyDeviceToHost),
                   "copying");
  balance::BatchQuotas exact(plan.placement, shape.num_experts);
  exact.solve(tokens);
  const auto fullest = [](const auto& values) {
    return static_cast<double>(*std::max_element(values.begin(), values.end()));
  };
  figures.worst = std::min(figures.worst, fullest(exact.rank_loads()) / fullest(loads));
  figures.mean_of_optimum += exact.balancedness() / kNumPlacements;
}

double quantile_of(std::vector<double> values, double at) {
  std::sort(values.begin(), values.end());
  return values[static_cast<std::size_t>(at * static_cast<double>(values.size() - 1))];
}

void run() {
  std::printf("%-34s %26s %16s %14s %10s %12s %14s\n", "experts x ranks (slots), drift", "GPU us, median (largest)",
              "launched early", "host us", "phases", "optimum/got", "balancedness");
  for (const Case& shape :
       {Case{256, 64, 288, 0.1}, Case{256, 64, 320, 0.1}, Case{256, 64, 320, 0.6}, Case{256, 64, 384, 0.1},
        Case{256, 64, 384, 0.3}, Case{256, 64, 384, 0.6}, Case{256, 8, 320, 0.1}, Case{256, 8, 320, 0.6},
        Case{128, 16, 160, 0.1}, Case{128, 16, 160, 0.6}, Case{256, 32, 288, 0.1}}) {
    Figures figures;
    for (std::uint32_t number = 0; number < kNumPlacements; ++number) measure(shape, number, figures);
    std::printf(
        "%-34s %26s %16s %14s %10s %12.4f %14.4f\n",
        fmt::format("{} x {} ({}), {}", shape.num_experts, shape.num_ranks, shape.num_slots, shape.drift).c_str(),
        fmt::format("{:.2f} ({:.2f})", quantile_of(figures.gpu_us, 0.5), quantile_of(figures.gpu_us, 1.0)).c_str(),
        fmt::format("{:.2f} ({:.2f})", quantile_of(figures.early_us, 0.5), quantile_of(figures.early_us, 1.0)).c_str(),
        fmt::format("{:.1f} ({:.1f})", quantile_of(figures.host_us, 0.5), quantile_of(figures.host_us, 1.0)).c_str(),
        fmt::format("{} ({})", quantile_of(figures.phases, 0.5), quantile_of(figures.phases, 1.0)).c_str(),
        figures.worst, figures.mean_of_optimum);
  }
}

}  // namespace
}  // namespace epistle::bench

int main() {
  if (const epistle::CudaSupport support = epistle::cuda_support(); support.num_devices == 0) {
    std::fprintf(stderr, "cuda_quotas needs a GPU: %s\n", support.reason.c_str());
    return 77;
  }
  epistle::bench::run();
  return 0;
}
