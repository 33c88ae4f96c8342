// Contenders of the CUDA device take turns.
#include <cstddef>
#include <memory>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "measure/compute_load.hpp"
#include "measure/cuda/cuda_bench_rank.hpp"
#include "measure/cuda/link_probe.hpp"

namespace epistle {

struct CudaTurns {
  CudaTurns(CudaTrial& turning, PairCalls pair_calls, const BenchSpec& spec)
      : trial(turning), calls(std::move(pair_calls)), runs(calls, spec, no_steps) {}
  CudaTurns(const CudaTurns&) = delete;
  CudaTurns& operator=(const CudaTurns&) = delete;
  ~CudaTurns() = default;

  CudaTrial& trial;
  PairCalls calls;
  PairRuns::OnStep no_steps = {};
  PairRuns runs;
  std::optional<PairGraph> chain = {};
  ReceivedData chain_rows = {};  ///< where the last pair of the captured chain puts its rows
  std::vector<double> chain_us = {};
};

void CudaBench::run_in_turns() {
  std::vector<std::unique_ptr<CudaTrial>> trials;
  for (const Contender& contender : spec_.contenders) {
    try {
      trials.push_back(make_trial(contender));
    } catch (const Error& error) {
      if (!means_unavailable(error)) throw;
      collector_.result().unavailable.push_back({.name = contender.name, .reason = error.what()});
      continue;
    }
    start(*trials.back());
  }
  if (trials.empty()) {
    const Unavailable& first = collector_.result().unavailable.front();
    throw Error(ErrorCode::kUnsupported, fmt::format("{} is not available: {}", first.name, first.reason));
  }
  if (spec_.compute_beside) measure_compute(*trials.front());
  StreamTimer timer(group_, rank_->stream.get(), spec_.runs_per_sample);
  std::vector<std::unique_ptr<CudaTurns>> all;
  for (const auto& trial : trials) {
    all.push_back(std::make_unique<CudaTurns>(*trial, pair_calls(*trial), spec_));
    CudaTurns& turns = *all.back();
    if (spec_.chain_in_graph) {
      turns.chain.emplace(turns.calls, spec_.num_chained_pairs);
      turns.chain_rows = data_of(trial->received);
    }
    quiet(*trial);
  }
  const std::int32_t num_rounds = spec_.num_warmups + spec_.num_iterations;
  for (std::int32_t round = 0; round < num_rounds; ++round) {
    for (std::size_t turn = 0; turn < all.size(); ++turn) {
      CudaTurns& turns = *all[(static_cast<std::size_t>(round) + turn) % all.size()];
      time_calls(turns.trial, timer, round);
      time_round_trips(turns.trial, timer, round);
      const double chain_us = turns.chain ? turns.runs.chain_in_graph(*turns.chain) : turns.runs.chain_from_host();
      if (round >= spec_.num_warmups) turns.chain_us.push_back(chain_us);
    }
    report({.task = "taking turns", .done = round + 1, .total = num_rounds});
  }
  for (std::size_t idx = 0; idx < all.size(); ++idx) finish_turns(trials[idx], *all[idx]);
}

/// Dispatches all of them before the first is combined. What the last one received stays.
void CudaBench::put_requests(CudaTrial& trial, std::int32_t num_requests) {
  prepare_and_dispatch(trial);
  for (std::int32_t request = 1; request < num_requests; ++request) {
    trial.in_flight.push_back(std::move(trial.received));
    prepare_and_dispatch(trial);
  }
  for (const Received& earlier : trial.in_flight) combine(trial, earlier);
  trial.in_flight.clear();
  combine(trial, trial.received);
}

/// Collective: how much work goes beside each pair, from what the first contender's chain and the work take alone.
void CudaBench::measure_compute(CudaTrial& first) {
  constexpr int kSamples = 5;
  constexpr std::int64_t kTiles = 4096;
  report({.task = "work beside the calls"});
  quiet(first);
  compute_.emplace();
  BenchResult& result = collector_.result();
  result.compute_units = spec_.compute_units;
  if (result.compute_units == 0) {
    const PairCalls calls = pair_calls(first);  // without work beside them, as there are no units yet
    const PairRuns::OnStep no_steps = {};
    PairRuns runs(calls, spec_, no_steps);
    StreamTimer timer(group_, rank_->stream.get(), 1);
    std::vector<double> unit_us;
    std::vector<double> pair_us;
    for (int sample = 0; sample < kSamples; ++sample) {
      const auto tiles = [&] {
        compute_->start(rank_->stream.get(), kTiles);
        compute_->join(rank_->stream.get());
      };
      unit_us.push_back(timer.time(tiles, [&] { first.dispatcher.wait(); }) / kTiles);
      pair_us.push_back(runs.chain_from_host());
    }
    // The least: what else the machine does only adds to it.
    result.compute_unit_us = summarize(unit_us).min;
    result.compute_units = units_per_pair(summarize(pair_us).min, result.compute_unit_us);
  }
  quiet(first);
}

/// Checks and adds what was measured, and lets the contender go: what is free on the GPUs then was its own.
void CudaBench::finish_turns(std::unique_ptr<CudaTrial>& trial, CudaTurns& turns) {
  check_after_times(*trial);
  recheck(*trial, "checking the chain of", [&] {
    if (turns.chain) {
      turns.chain->launch();
      return turns.chain_rows;
    }
    turns.runs.put_chain();
    return data_of(trial->received);
  });
  quiet(*trial);
  add_times(*trial);
  const PairTimes kind{.num = spec_.num_chained_pairs, .in_graph = turns.chain.has_value()};
  BenchResult& result = collector_.result();
  result.chains.push_back(pair_times(trial->name, kind, turns.chain_us));
  collector_.add_buffers(trial->name, trial->dispatcher);
  result.dispatchers.back().tuning = trial->dispatcher.describe_tuning(config_.max_tokens);
  turns.chain.reset();
  trial->private_outputs = {};
  group_.barrier();
  const std::int64_t free_before = free_gpu_bytes();
  group_.barrier();
  trial.reset();
  group_.barrier();
  result.dispatchers.back().device_bytes = free_gpu_bytes() - free_before;
}

/// Collective: of all GPUs in use together, each counted once.
std::int64_t CudaBench::free_gpu_bytes() const {
  std::size_t free_bytes = 0;
  std::size_t total_bytes = 0;
  cuda::check_cuda(cudaMemGetInfo(&free_bytes, &total_bytes), "ask for the free memory of the GPU");
  // Ranks that share a GPU see the same number.
  const std::vector<RankDevice> devices = gather_devices(group_);
  const int num_sharing = group_.size() / count_gpus(devices);
  return collector_.sum_over_ranks(static_cast<std::int64_t>(free_bytes)) / num_sharing;
}

}  // namespace epistle
