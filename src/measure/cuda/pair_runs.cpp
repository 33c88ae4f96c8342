#include "measure/cuda/pair_runs.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <span>

#include "measure/cuda/stream_gate.hpp"

namespace epistle {
namespace {

// Replays that are on a stream at once. A stream takes about a thousand launches before the host has to wait in the
// driver, where ranks that are threads of one process would wait for each other. After a block the streams run empty,
// and the next one begins with a replay that is not counted.
constexpr std::int32_t kReplaysPerBlock = 64;

}  // namespace

PairGraph::PairGraph(const PairCalls& calls, std::int32_t num_pairs)
    : stream_(calls.stream), graph_(calls.stream, [&] {
        handles_.reserve(static_cast<std::size_t>(num_pairs));
        for (std::int32_t pair = 0; pair < num_pairs; ++pair) handles_.push_back(calls.put_pair());
      }) {}

PairRuns::PairRuns(const PairCalls& calls, const BenchSpec& spec, const OnStep& on_step)
    : calls_(calls),
      spec_(spec),
      on_step_(on_step),
      slowest_(calls.group, kReplaysPerBlock),
      timer_(calls.group, calls.stream, 1) {}

std::vector<double> PairRuns::replays(const PairGraph& graph) {
  std::vector<double> times_us;
  times_us.reserve(static_cast<std::size_t>(spec_.num_replays));
  std::array<TimedEvent, kReplaysPerBlock + 1> events;
  std::array<double, kReplaysPerBlock> block_us{};
  StreamGate gate(calls_.group, calls_.stream);
  std::int32_t num_warmups = spec_.num_warmups;
  while (std::ssize(times_us) < spec_.num_replays) {
    const std::int64_t num_left = num_warmups > 0 ? num_warmups : spec_.num_replays - std::ssize(times_us);
    const auto num_replays = static_cast<std::int32_t>(std::min<std::int64_t>(kReplaysPerBlock, num_left));
    gate.hold(num_replays + 1);
    graph.launch();
    events.front().record(calls_.stream);
    for (std::int32_t replay = 0; replay < num_replays; ++replay) {
      graph.launch();
      events[static_cast<std::size_t>(replay) + 1].record(calls_.stream);
    }
    calls_.dispatcher.wait();
    if (num_warmups > 0) {
      num_warmups -= num_replays;
      continue;
    }
    const std::span<double> samples(block_us.data(), static_cast<std::size_t>(num_replays));
    for (std::size_t idx = 0; idx < samples.size(); ++idx) samples[idx] = events[idx + 1].us_since(events[idx]);
    slowest_.reduce(samples);
    times_us.insert(times_us.end(), samples.begin(), samples.end());
    report(std::ssize(times_us), spec_.num_replays);
  }
  return times_us;
}

template <typename TimeOne>
std::vector<double> PairRuns::one_per_iteration(const TimeOne& time_one) {
  std::vector<double> times_us;
  times_us.reserve(static_cast<std::size_t>(spec_.num_iterations));
  const std::int32_t num_rounds = spec_.num_warmups + spec_.num_iterations;
  for (std::int32_t round = 0; round < num_rounds; ++round) {
    const double time_us = time_one();
    if (round >= spec_.num_warmups) times_us.push_back(time_us);
    report(round + 1, num_rounds);
  }
  return times_us;
}

double PairRuns::chain_in_graph(const PairGraph& graph) {
  return timer_.time([&] { graph.launch(); }, [&] { calls_.dispatcher.wait(); }) / spec_.num_chained_pairs;
}

void PairRuns::put_chain() const {
  for (std::int32_t pair = 0; pair < spec_.num_chained_pairs; pair += spec_.num_in_flight) {
    if (calls_.put_requests) {
      calls_.put_requests(std::min(spec_.num_in_flight, spec_.num_chained_pairs - pair));
    } else {
      static_cast<void>(calls_.put_pair());
    }
  }
}

double PairRuns::chain_from_host() {
  calls_.group.barrier();
  static_cast<void>(calls_.put_pair());
  begin_.record(calls_.stream);
  const bool beside = calls_.compute != nullptr && calls_.compute_units > 0;
  if (beside) calls_.compute->start(calls_.stream, calls_.compute_units * spec_.num_chained_pairs);
  put_chain();
  if (beside) calls_.compute->join(calls_.stream);
  end_.record(calls_.stream);
  calls_.dispatcher.wait();
  return slowest_.reduce(end_.us_since(begin_)) / spec_.num_chained_pairs;
}

std::vector<double> PairRuns::chains_in_graph(const PairGraph& graph) {
  return one_per_iteration([&] { return chain_in_graph(graph); });
}

std::vector<double> PairRuns::chains_from_host() {
  return one_per_iteration([&] { return chain_from_host(); });
}

}  // namespace epistle
