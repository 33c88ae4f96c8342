// prepare, dispatch, combine and the backward pass of dispatch captured into a CUDA graph, and replayed with other
// routing and rows in the same buffers.
#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include <cuda_runtime_api.h>

#include <gtest/gtest.h>

#include "epistle/cuda.hpp"
#include "epistle/group.hpp"

#include "support/cuda_devices.hpp"
#include "support/cuda_memory.hpp"
#include "support/cuda_play.hpp"
#include "support/dispatcher_names.hpp"
#include "support/placements.hpp"

namespace epistle::testing {
namespace {

constexpr int kNumReplays = 3;

struct DestroyGraph {
  void operator()(cudaGraph_t graph) const noexcept { (void)cudaGraphDestroy(graph); }
};
struct DestroyGraphExec {
  void operator()(cudaGraphExec_t graph) const noexcept { (void)cudaGraphExecDestroy(graph); }
};
using Graph = std::unique_ptr<std::remove_pointer_t<cudaGraph_t>, DestroyGraph>;
using GraphExec = std::unique_ptr<std::remove_pointer_t<cudaGraphExec_t>, DestroyGraphExec>;

/// What one rank gives and takes, at addresses that the graph keeps.
class GraphRank {
 public:
  GraphRank(Group& group, const std::string& dispatcher, const Scenario& scenario)
      : group_(group),
        scenario_(scenario),
        config_(resolve_config(scenario.config, group.size())),
        dispatcher_(std::in_place, group, dispatcher, scenario.config, CudaOptions{.device = 0}),
        memory_(dispatcher_->device_ordinal(), DeviceArena::kDefaultBytes) {
    const Round round(scenario, 0);
    const RoutingTable& table = round.table(rank());
    const auto num_entries = static_cast<std::int64_t>(table.expert_ids.size());
    num_tokens_ = table.num_tokens;
    expert_ids_ = take<std::int32_t>(num_entries);
    weights_ = take<float>(num_entries);
    counted_ = take<std::int32_t>(1);
    step_seed_ = take<std::uint64_t>(1);
    const std::int64_t num_rows = config_.capacity_rows;
    const auto rows_of = [&](std::int64_t count, std::int64_t hidden, DType dtype) {
      return Rows{.data = arena().take(count * hidden * dtype_bytes(dtype)),
                  .num_rows = count,
                  .hidden = hidden,
                  .dtype = dtype};
    };
    tokens_ = rows_of(num_tokens_, config_.hidden, config_.dtype);
    expert_rows_ = rows_of(num_rows, config_.combine_hidden, config_.combine_dtype);
    out_ = rows_of(num_tokens_, config_.combine_hidden, config_.combine_dtype);
    grad_out_ = rows_of(num_tokens_, config_.combine_hidden, config_.combine_dtype);
    num_weights_ = num_rows * static_cast<std::int64_t>(Checker(round).weights_per_row());
    grad_weights_ = take<float>(num_weights_);
    grad_probs_ = take<float>(num_entries);
    group_.barrier();
  }

  ~GraphRank() {
    memory_.drain();
    try {
      group_.barrier();
    } catch (const Error&) {
      // The group is broken: nobody will call anything any more.
    }
    dispatcher_.reset();  // before the stream that it uses
  }
  GraphRank(const GraphRank&) = delete;
  GraphRank& operator=(const GraphRank&) = delete;

  [[nodiscard]] Mismatch play() {
    // Once without a graph, so that nothing is loaded for the first time while the stream is captured.
    EPISTLE_RETURN_MISMATCH(play_eager("eager", 0));
    group_.barrier();

    check_cuda(cudaStreamBeginCapture(stream(), cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    Received received = call();
    cudaGraph_t captured = nullptr;
    check_cuda(cudaStreamEndCapture(stream(), &captured), "cudaStreamEndCapture");
    const Graph graph(captured);
    cudaGraphExec_t instantiated = nullptr;
    check_cuda(cudaGraphInstantiate(&instantiated, graph.get(), 0), "cudaGraphInstantiate");
    const GraphExec exec(instantiated);
    check_cuda(cudaGraphUpload(exec.get(), stream()), "cudaGraphUpload");
    arena().synchronize();

    for (int replay = 1; replay <= kNumReplays; ++replay) {
      const Round inputs(scenario_of(replay), replay);
      fill_buffers(inputs, replay);
      set_placement(inputs);
      group_.barrier();
      check_cuda(cudaGraphLaunch(exec.get(), stream()), "cudaGraphLaunch");
      dispatcher_->wait();
      EPISTLE_RETURN_MISMATCH(check(inputs, replay, received, fmt::format("replay {}", replay)));
    }
    // Calls that are not in the graph go on from where it left. The graph runs no more, so its buffer can be used.
    const Handle captured_handle = received.handle();
    received.release();
    group_.barrier();
    EPISTLE_RETURN_MISMATCH(play_eager("eager after the replays", last_round()));
    // The graph must not be destroyed while another rank still waits on the device.
    group_.barrier();
    return std::nullopt;
  }

 private:
  static constexpr std::int64_t kFloatBytes = sizeof(float);

  [[nodiscard]] int rank() const noexcept { return group_.rank(); }
  [[nodiscard]] DeviceArena& arena() noexcept { return memory_.arena(); }
  [[nodiscard]] cudaStream_t stream() noexcept { return arena().stream(); }
  template <typename Value>
  [[nodiscard]] Value* take(std::int64_t count) {
    return reinterpret_cast<Value*>(arena().take(count * static_cast<std::int64_t>(sizeof(Value))));
  }

  /// Where tokens are counted, each replay has another number of them: none, half, all.
  [[nodiscard]] Scenario scenario_of(int round) const {
    Scenario scenario = scenario_;
    if (counts_tokens()) scenario.counted = 0.5 * (round % 3);
    return scenario;
  }
  [[nodiscard]] bool counts_tokens() const { return scenario_.counted >= 0.0; }

  /// The gradient of weight `idx` of a rank's rows: exact, and another one in every replay.
  [[nodiscard]] static float gradient(int round, int rank, std::int64_t idx) {
    return static_cast<float>(idx + (std::int64_t{rank} + 4 * round) * 65536);
  }

  [[nodiscard]] Received call() {
    Received received = dispatcher_->dispatch({.expert_ids = {expert_ids_, num_tokens_, config_.top_k},
                                               .weights = weights_,
                                               .num_tokens = counts_tokens() ? counted_ : nullptr,
                                               .step_seed_at = step_seed_,
                                               .tokens = tokens_},
                                              stream());
    const Handle handle = received.handle();
    dispatcher_->combine({.handle = handle, .rows = expert_rows_, .out = out_}, stream());
    dispatcher_->dispatch_backward({.handle = handle,
                                    .grad_rows = expert_rows_,
                                    .grad_weights = grad_weights_,
                                    .grad_tokens = grad_out_,
                                    .grad_probs = grad_probs_},
                                   stream());
    return received;
  }

  /// The placement of the last replay stays in force.
  [[nodiscard]] int last_round() const { return scenario_.placement_seed != 0 ? kNumReplays : 0; }
  void set_placement(const Round& round) {
    if (scenario_.placement_seed != 0) dispatcher_->set_placement(round.placement(), stream());
  }

  [[nodiscard]] Mismatch play_eager(const std::string& what, int idx) {
    const Round round(scenario_of(idx), idx);
    fill_buffers(round, idx);
    group_.barrier();
    const Received received = call();
    dispatcher_->wait();
    return check(round, idx, received, what);
  }

  void fill_buffers(const Round& round, int idx) {
    const RoutingTable& table = round.table(rank());
    const auto upload = [this](void* target, const auto& values) {
      arena().upload(target, values.data(), static_cast<std::int64_t>(values.size() * sizeof(values[0])));
    };
    upload(expert_ids_, table.expert_ids);
    upload(weights_, table.weights);
    upload(step_seed_, std::vector<std::uint64_t>{round.step_seed()});
    upload(counted_, std::vector<std::int32_t>{static_cast<std::int32_t>(round.counted_tokens(rank()))});
    upload(tokens_.data, round.payload(rank()));
    upload(expert_rows_.data, round.values(10, rank(), expert_rows_.num_rows));
    std::vector<float> gradients;
    for (std::int64_t weight = 0; weight < num_weights_; ++weight) gradients.push_back(gradient(idx, rank(), weight));
    upload(grad_weights_, gradients);
    memory_.fill(out_.data, Subject::kPoison, out_bytes());
    memory_.fill(grad_out_.data, Subject::kPoison, out_bytes());
    memory_.fill(grad_probs_, Subject::kPoison, num_tokens_ * config_.top_k * kFloatBytes);
  }

  [[nodiscard]] std::int64_t out_bytes() const { return out_.num_rows * out_.row_bytes(); }

  [[nodiscard]] Mismatch check(const Round& round, int idx, const Received& received, const std::string& what) {
    Mismatch mismatch = find_mismatch(round, idx, received);
    if (mismatch) *mismatch = what + ": " + *mismatch;
    return mismatch;
  }

  [[nodiscard]] Mismatch find_mismatch(const Round& round, int idx, const Received& received) {
    const Checker checker(round);
    const RoutingStats stats = received.handle().wait_stats();
    const ReceivedCopy host(memory_, data_of(received), config_.top_k);
    EPISTLE_RETURN_MISMATCH(checker.check_description(rank(), host.data().description));
    std::int64_t num_dropped = 0;
    for (const std::int32_t dropped : checker.layout(rank()).expert_dropped) num_dropped += dropped;
    EPISTLE_RETURN_MISMATCH(expect_equal(stats.dropped_here, num_dropped, "dropped_here"));
    const RoutingStats* const known = received.handle().try_stats();
    if (known == nullptr) return "try_stats does not know what wait_stats has told";
    EPISTLE_RETURN_MISMATCH(expect_equal(known->dropped_here, num_dropped, "dropped_here of try_stats"));
    if (!counts_tokens()) {
      EPISTLE_RETURN_MISMATCH(expect_equal(stats.num_tokens, num_tokens_, "num_tokens"));
    }
    EPISTLE_RETURN_MISMATCH(checker.check_received(rank(), host.data(), "dispatch"));
    const std::vector<std::byte> out = arena().read(static_cast<const std::byte*>(out_.data), out_bytes());
    EPISTLE_RETURN_MISMATCH(checker.check_sums(10, rank(), round.config().apply_weights, out, "combine"));
    return check_backward(checker, idx);
  }

  [[nodiscard]] Mismatch check_backward(const Checker& checker, int idx) {
    const std::vector<std::byte> grad_out = arena().read(static_cast<const std::byte*>(grad_out_.data), out_bytes());
    EPISTLE_RETURN_MISMATCH(checker.check_sums(10, rank(), false, grad_out, "dispatch_backward"));
    const RoutingTable& table = checker.table(rank());
    const auto grad_probs = arena().read(grad_probs_, static_cast<std::int64_t>(table.expert_ids.size()));
    for (std::size_t entry = 0; entry < grad_probs.size(); ++entry) {
      const std::int32_t row = checker.layout(rank()).dst_row[entry];
      const auto position = static_cast<std::int64_t>(entry) % config_.top_k;
      const std::int64_t weight = checker.token_major() ? std::int64_t{row} * config_.top_k + position : row;
      const float wanted = row < 0 ? 0.0F : gradient(idx, checker.layout(rank()).slots[entry].rank, weight);
      EPISTLE_RETURN_MISMATCH(expect_equal(grad_probs[entry], wanted, fmt::format("grad_probs[{}]", entry)));
    }
    return std::nullopt;
  }

  Group& group_;
  const Scenario& scenario_;
  ResolvedConfig config_;
  std::optional<Dispatcher> dispatcher_;
  CudaMemory memory_;
  std::int64_t num_tokens_ = 0;
  std::int32_t* expert_ids_ = nullptr;
  float* weights_ = nullptr;
  std::int32_t* counted_ = nullptr;
  std::uint64_t* step_seed_ = nullptr;
  Rows tokens_;
  Rows expert_rows_;
  Rows out_;
  Rows grad_out_;
  float* grad_weights_ = nullptr;
  std::int64_t num_weights_ = 0;
  float* grad_probs_ = nullptr;
};

using GraphParam = std::tuple<std::string, OutputLayout>;

class CudaGraph : public OnGpu<::testing::TestWithParam<GraphParam>> {
 protected:
  static const std::string& dispatcher() { return std::get<0>(GetParam()); }
  static Scenario scenario() {
    const OutputLayout layout = std::get<1>(GetParam());
    Scenario scenario;
    scenario.config.hidden = 128;
    scenario.config.num_experts = 8;
    scenario.config.top_k = 3;
    scenario.config.max_tokens = 24;
    // What one routing drops another has room for.
    set_layout(scenario.config, layout, SizingMode::kCapacity, layout == OutputLayout::kTokenMajor ? 30 : 64,
               /*alignment=*/4);
    scenario.config.overflow = OverflowPolicy::kDrop;
    scenario.tokens_per_rank = {24, 17};
    return scenario;
  }

  static void expect_replays(const Scenario& scenario) {
    std::vector<Mismatch> mismatches(scenario.tokens_per_rank.size());
    run_thread_ranks(static_cast<int>(mismatches.size()),
                     [&](Group& group) {
                       const auto out = std::find(scenario.masked.begin(), scenario.masked.end(), group.rank());
                       if (out != scenario.masked.end()) return;
                       if (!scenario.masked.empty()) group.set_mask(scenario.masked);
                       GraphRank rank(group, dispatcher(), scenario);
                       mismatches[static_cast<std::size_t>(group.rank())] = rank.play();
                     },
                     {.timeout = kCudaTimeout});
    for (std::size_t rank = 0; rank < mismatches.size(); ++rank) {
      EXPECT_FALSE(mismatches[rank].has_value()) << "rank " << rank << ": " << *mismatches[rank];
    }
  }
};

TEST_P(CudaGraph, ReplaysWithOtherRouting) { expect_replays(scenario()); }

TEST_P(CudaGraph, ReplaysWhereEveryRoutingFits) {
  Scenario roomy = scenario();
  set_layout(roomy.config, std::get<1>(GetParam()), SizingMode::kCapacity, 200, /*alignment=*/4);
  expect_replays(roomy);
}

TEST_P(CudaGraph, ReplaysWithAnotherNumberOfTokens) {
  Scenario counted = scenario();
  counted.counted = 1.0;
  if (const std::string reason = cannot_play(dispatcher(), counted); !reason.empty()) GTEST_SKIP() << reason;
  expect_replays(counted);
}

TEST_P(CudaGraph, ReplaysWithoutARankThatIsMaskedOut) {
  if (!find_dispatcher(dispatcher(), Device::kCuda).capabilities().masks) GTEST_SKIP() << "no masks";
  for (const int capacity : {30, 200}) {
    Scenario masked = scenario();
    masked.tokens_per_rank = {24, 9, 17};
    masked.masked = {capacity == 30 ? 0 : 1};
    set_layout(masked.config, std::get<1>(GetParam()), SizingMode::kCapacity, capacity, /*alignment=*/4);
    expect_replays(masked);
  }
}

/// Every replay goes by another placement, and another seed.
TEST_P(CudaGraph, ReplaysWithAnotherPlacement) {
  Scenario placed = scenario();
  placed.placement_seed = 11;
  placed.num_rounds = kNumReplays + 1;
  place_experts(placed);
  expect_replays(placed);
  set_layout(placed.config, std::get<1>(GetParam()), SizingMode::kCapacity, 200, /*alignment=*/4);
  expect_replays(placed);
}

std::string graph_case_name(const ::testing::TestParamInfo<GraphParam>& param_info) {
  const auto& [dispatcher, layout] = param_info.param;
  return dispatcher + (layout == OutputLayout::kTokenMajor ? "_TokenMajor" : "_ExpertMajor");
}

INSTANTIATE_TEST_SUITE_P(All, CudaGraph,
                         ::testing::Combine(::testing::ValuesIn(one_gpu_dispatcher_names()),
                                            ::testing::Values(OutputLayout::kTokenMajor, OutputLayout::kExpertMajor)),
                         graph_case_name);

}  // namespace
}  // namespace epistle::testing
