#include "cuda_soak/replays.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <cuda_runtime_api.h>

#include <fmt/format.h>

#include "epistle/dispatcher.hpp"
#include "epistle/error.hpp"

#include "cuda_soak/replay_kernels.hpp"
#include "dispatch/call/resolved_config.hpp"
#include "measure/cuda/captured_graph.hpp"
#include "support/checker.hpp"
#include "support/device_arena.hpp"
#include "support/random_scenario.hpp"
#include "support/scenario_text.hpp"

namespace epistle::testing {
namespace {

constexpr std::int64_t kStepsPerGraph = 10;
/// A stream takes about a thousand launches before the host has to wait in the driver, where ranks that are threads of
/// one process would wait for each other.
constexpr std::int64_t kLaunchesAhead = 16;
constexpr std::chrono::seconds kLookInterval{5};
constexpr std::int64_t kReplayArenaBytes = std::int64_t{4} << 20;
constexpr std::int32_t kExpertsPerRank = 16;
constexpr Round::ValueStream kTokenRows = 30;

class PlainEvent {
 public:
  PlainEvent() { check_cuda(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "cudaEventCreateWithFlags"); }
  ~PlainEvent() { (void)cudaEventDestroy(event_); }
  PlainEvent(const PlainEvent&) = delete;
  PlainEvent& operator=(const PlainEvent&) = delete;

  void record(cudaStream_t stream) { check_cuda(cudaEventRecord(event_, stream), "cudaEventRecord"); }
  /// Returns at once where nothing was recorded.
  void wait() { check_cuda(cudaEventSynchronize(event_), "cudaEventSynchronize"); }

 private:
  cudaEvent_t event_ = nullptr;
};

/// Room for every routing, so that rows may be sent before anything is agreed on.
DispatcherConfig replay_config(const SoakOptions& options) {
  Draw draw(options.seed);
  DispatcherConfig config;
  config.hidden = kReplayHidden;
  config.num_experts = kExpertsPerRank * options.num_ranks;
  config.top_k = kReplayTopK;
  config.max_tokens = kReplayTokens;
  const auto layout = draw.any_of({OutputLayout::kTokenMajor, OutputLayout::kExpertMajor, OutputLayout::kExpertBlocks});
  const std::int32_t alignment = draw.any_of({1, 8, 16});
  const std::int64_t num_tokens = std::int64_t{kReplayTokens} * options.num_ranks;
  const bool is_padded = layout == OutputLayout::kExpertMajor;
  set_layout(config, layout, SizingMode::kCapacity,
             is_padded ? num_tokens * kReplayTopK + std::int64_t{kExpertsPerRank} * alignment : num_tokens, alignment);
  config.zero_padding = false;
  // Every step of a graph has one, and one is for a call before it.
  config.max_handles = static_cast<std::int32_t>(kStepsPerGraph) + 1;
  return config;
}

/// What all ranks give in the steps of a variant.
Scenario replay_scenario(const SoakOptions& options, std::uint64_t variant) {
  Scenario scenario;
  scenario.config = replay_config(options);
  scenario.seed = mix(options.seed, variant + 1);
  Draw draw(scenario.seed);
  for (int rank = 0; rank < options.num_ranks; ++rank) {
    scenario.tokens_per_rank.push_back(draw.one_in(6) ? 0 : draw.between(0, kReplayTokens));
  }
  scenario.missing_probability = draw.any_of({0.0, 0.1, 0.6});
  scenario.hot_experts = draw.one_in(2);
  return scenario;
}

/// Tokens behind the last have experts as well, which must get nothing of them.
ReplayInputs inputs_of(const Round& round, int rank) {
  const RoutingTable& table = round.table(rank);
  ReplayInputs inputs;
  std::memset(&inputs, 0x7f, sizeof inputs);
  for (std::int32_t entry = 0; entry < kReplayTokens * kReplayTopK; ++entry) {
    inputs.expert_ids[entry] = entry % table.num_experts;
    inputs.weights[entry] = 1.0F;
  }
  std::copy(table.expert_ids.begin(), table.expert_ids.end(), inputs.expert_ids);
  std::copy(table.weights.begin(), table.weights.end(), inputs.weights);
  const std::vector<std::byte> rows = round.values(kTokenRows, rank, table.num_tokens);
  if (!rows.empty()) std::memcpy(inputs.tokens.elements, rows.data(), rows.size());
  inputs.num_tokens = static_cast<std::int32_t>(table.num_tokens);
  return inputs;
}

/// What combine must give, as every expert gives back what it was given.
ReplayRows expectation_of(const Round& round, int rank) {
  const Checker checker(round);
  const reference::RowReader reader = [&](int peer, std::int32_t row, std::vector<float>& values) {
    const reference::OutputRow& origin = checker.layout(peer).rows[static_cast<std::size_t>(row)];
    values = round.row_values(kTokenRows, origin.src_rank, origin.src_token);
  };
  ReplayRows expected;
  std::memset(&expected, 0, sizeof expected);
  const RowRange tokens{0, round.table(rank).num_tokens};
  checker.expectation().combine(rank, tokens, reader, round.config().apply_weights,
                                reinterpret_cast<std::byte*>(expected.elements));
  return expected;
}

/// One rank's dispatcher, and the buffers of its steps.
class ReplayRank {
 public:
  ReplayRank(Group& group, const SoakOptions& options)
      : group_(group),
        scenario_(replay_scenario(options, 0)),
        dispatcher_(std::in_place, group, options.dispatcher, scenario_.config,
                    CudaOptions{.device = options.virtual_ranks ? 0 : -1}),
        arena_(dispatcher_->device_ordinal(), kReplayArenaBytes) {
    check_cuda(load_replay_kernels(), "loading the kernels of a step");
    args_.seed = options.seed;
    args_.rank = static_cast<std::uint64_t>(group.rank());
    std::vector<ReplayInputs> variants;
    std::vector<ReplayRows> expectations;
    for (std::uint64_t variant = 0; variant < kReplayVariants; ++variant) {
      const Round round(replay_scenario(options, variant), 0);
      variants.push_back(inputs_of(round, group.rank()));
      expectations.push_back(expectation_of(round, group.rank()));
    }
    args_.variants = place(variants);
    args_.expectations = place(expectations);
    args_.inputs = place(std::vector{variants.front()});
    args_.out = place(std::vector{expectations.front()});
    args_.findings = place(std::vector{ReplayFindings{}});
    group_.barrier();
  }

  ~ReplayRank() {
    (void)cudaStreamSynchronize(stream());
    try {
      group_.barrier();
    } catch (const Error&) {
      // The group is broken: nobody will call anything any more.
    }
    dispatcher_.reset();  // before the stream that it uses
  }
  ReplayRank(const ReplayRank&) = delete;
  ReplayRank& operator=(const ReplayRank&) = delete;

  [[nodiscard]] int device() { return dispatcher_->device_ordinal(); }
  [[nodiscard]] cudaStream_t stream() const noexcept { return arena_.stream(); }

  /// Puts a step on the stream. The handle must live as long as a graph that has the step.
  [[nodiscard]] Handle put_step() {
    check_cuda(launch_replay_inputs(args_, stream()), "launching the inputs of a step");
    const ConstRows tokens{.data = args_.inputs->tokens.elements, .num_rows = kReplayTokens, .hidden = kReplayHidden};
    const Received received =
        dispatcher_->dispatch({.expert_ids = {args_.inputs->expert_ids, kReplayTokens, kReplayTopK},
                               .weights = args_.inputs->weights,
                               .num_tokens = &args_.inputs->num_tokens,
                               .tokens = tokens},
                              stream());
    const Rows rows = received.rows();
    check_cuda(launch_replay_experts(args_, rows.data, received.expert_outputs().data, rows.num_rows * rows.row_bytes(),
                                     stream()),
               "launching the experts of a step");
    dispatcher_->combine({.received = received,
                          .out = {.data = args_.out->elements, .num_rows = kReplayTokens, .hidden = kReplayHidden}},
                         stream());
    check_cuda(launch_replay_check(args_, stream()), "launching the check of a step");
    return received.handle();
  }

  /// Waits for the stream, and throws what was found. `num_steps` were put there so far.
  void look(std::int64_t num_steps) {
    dispatcher_->wait();
    arena_.synchronize();
    const ReplayFindings found = arena_.read(args_.findings, 1).front();
    if (found.num_mismatches > 0) {
      throw Error(ErrorCode::kVerificationFailed,
                  fmt::format("rank {}: {} elements of {} steps differ; one of the first: step {} (variant {}), token "
                              "{}, element {} is {:04x}, expected {:04x}; {}",
                              group_.rank(), found.num_mismatches, found.num_steps, found.step,
                              replay_variant(args_.seed, found.step), found.token, found.element, found.actual,
                              found.expected, to_text(scenario_)));
    }
    if (found.num_steps != static_cast<std::uint64_t>(num_steps)) {
      throw Error(ErrorCode::kVerificationFailed,
                  fmt::format("rank {}: {} steps were compared, not {}; {}", group_.rank(), found.num_steps, num_steps,
                              to_text(scenario_)));
    }
  }

 private:
  template <typename Value>
  [[nodiscard]] Value* place(const std::vector<Value>& values) {
    return reinterpret_cast<Value*>(
        arena_.copy_in(values.data(), static_cast<std::int64_t>(values.size() * sizeof(Value))));
  }

  Group& group_;
  Scenario scenario_;  ///< of variant 0
  std::optional<Dispatcher> dispatcher_;
  DeviceArena arena_;
  ReplayArgs args_;
};

}  // namespace

SoakResult soak_replays(Group& group, const SoakOptions& options, const SoakProgress& progress) {
  ReplayRank rank(group, options);
  // Once without a graph, so that nothing is loaded for the first time while the stream is captured.
  (void)rank.put_step();
  std::int64_t num_steps = 1;
  rank.look(num_steps);
  group.barrier();

  std::vector<Handle> handles;
  const CapturedGraph graph(rank.stream(), [&] {
    for (std::int64_t step = 0; step < kStepsPerGraph; ++step) handles.push_back(rank.put_step());
  });
  std::array<PlainEvent, kLaunchesAhead> launched;
  SoakResult result;
  result.subject =
      fmt::format("replays of {}", to_string(resolve_config(replay_config(options), options.num_ranks).layout));
  result.free_before_bytes = free_device_bytes(group, rank.device());
  auto looked = std::chrono::steady_clock::now();
  for (std::size_t launch = 0; result.num_done < options.num_replays; ++launch) {
    PlainEvent& event = launched[launch % launched.size()];
    event.wait();
    graph.launch(rank.stream());
    event.record(rank.stream());
    num_steps += kStepsPerGraph;
    result.num_done += kStepsPerGraph;
    const auto now = std::chrono::steady_clock::now();
    if (now - looked < kLookInterval) continue;
    looked = now;
    rank.look(num_steps);
    if (group.rank() == 0) progress(result.num_done);
  }
  rank.look(num_steps);
  result.free_after_bytes = free_device_bytes(group, rank.device());
  return result;
}

}  // namespace epistle::testing
