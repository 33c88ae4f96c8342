// prepare, dispatch, combine and the backward pass of dispatch captured into a CUDA graph, and replayed with other
// routing and rows in the same buffers.
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include <cuda_runtime_api.h>

#include <gtest/gtest.h>

#include "epistle/cuda.hpp"
#include "epistle/group.hpp"

#include "support/cuda_devices.hpp"
#include "support/cuda_play.hpp"
#include "support/device_arena.hpp"
#include "support/host_output.hpp"
#include "support/scenario.hpp"

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
  GraphRank(Group& group, const Scenario& scenario)
      : group_(group),
        scenario_(scenario),
        dispatcher_(make_cuda_dispatcher("direct", group, scenario.config, {.device = 0})),
        arena_(dispatcher_->device(), DeviceArena::kDefaultBytes) {
    dispatcher_->set_stream(arena_.stream());
    const Play play(scenario, 0);
    const RoutingTable& table = play.table(rank());
    const auto num_entries = static_cast<std::int64_t>(table.expert_ids.size());
    view_ = {.expert_ids = arena_.take(num_entries * 4),
             .weights = reinterpret_cast<const float*>(arena_.take(num_entries * 4)),
             .num_tokens = table.num_tokens,
             .top_k = table.top_k};
    payload_ = {.rows = arena_.take(table.num_tokens * play.row_bytes()), .num_tokens = table.num_tokens};
    expert_rows_ = arena_.take(scenario.config.capacity_rows * play.combine_row_bytes());
    out_bytes_ = table.num_tokens * play.combine_row_bytes();
    out_ = arena_.take(out_bytes_);
    grad_out_ = arena_.take(out_bytes_);
    num_weights_ = scenario.config.capacity_rows * dispatcher_->layout().weights_per_row();
    grad_weights_ = reinterpret_cast<float*>(arena_.take(num_weights_ * kFloatBytes));
    grad_topk_ = reinterpret_cast<float*>(arena_.take(num_entries * kFloatBytes));
    group_.barrier();
  }

  ~GraphRank() {
    (void)cudaStreamSynchronize(arena_.stream());
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
    fill_buffers(Play(scenario_, 0), 0);
    group_.barrier();
    {
      const Handle handle = call();
      dispatcher_->synchronize();
      EPISTLE_RETURN_MISMATCH(check(Play(scenario_, 0), 0, handle, "eager"));
    }
    group_.barrier();

    check_cuda(cudaStreamBeginCapture(arena_.stream(), cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    const Handle handle = call();
    cudaGraph_t captured = nullptr;
    check_cuda(cudaStreamEndCapture(arena_.stream(), &captured), "cudaStreamEndCapture");
    const Graph graph(captured);
    cudaGraphExec_t instantiated = nullptr;
    check_cuda(cudaGraphInstantiate(&instantiated, graph.get(), 0), "cudaGraphInstantiate");
    const GraphExec exec(instantiated);
    check_cuda(cudaGraphUpload(exec.get(), arena_.stream()), "cudaGraphUpload");
    arena_.synchronize();

    for (int replay = 1; replay <= kNumReplays; ++replay) {
      const Play inputs(scenario_, replay);
      fill_buffers(inputs, replay);
      group_.barrier();
      check_cuda(cudaGraphLaunch(exec.get(), arena_.stream()), "cudaGraphLaunch");
      dispatcher_->synchronize();
      EPISTLE_RETURN_MISMATCH(check(inputs, replay, handle, fmt::format("replay {}", replay)));
    }
    // Calls that are not in the graph go on from where it left.
    fill_buffers(Play(scenario_, 0), 0);
    group_.barrier();
    const Handle later = call();
    dispatcher_->synchronize();
    EPISTLE_RETURN_MISMATCH(check(Play(scenario_, 0), 0, later, "eager after the replays"));
    // The graph must not be destroyed while another rank still waits on the device.
    group_.barrier();
    return std::nullopt;
  }

 private:
  static constexpr std::int64_t kFloatBytes = sizeof(float);

  [[nodiscard]] int rank() const noexcept { return group_.rank(); }

  /// The gradient of weight `idx` of a rank's rows: exact, and another one in every replay.
  [[nodiscard]] static float gradient(int round, int rank, std::int64_t idx) {
    return static_cast<float>(idx + (std::int64_t{rank} + 4 * round) * 65536);
  }

  [[nodiscard]] Handle call() {
    Handle handle = dispatcher_->prepare(view_);
    dispatcher_->dispatch(handle, payload_);
    dispatcher_->combine(handle, expert_rows_, out_, out_bytes_);
    dispatcher_->dispatch_backward(handle, expert_rows_, grad_weights_, grad_out_, out_bytes_, grad_topk_);
    return handle;
  }

  void fill_buffers(const Play& play, int round) {
    const RoutingTable& table = play.table(rank());
    const auto upload = [this](const void* target, const auto& values) {
      arena_.upload(const_cast<void*>(target), values.data(),
                    static_cast<std::int64_t>(values.size() * sizeof(values[0])));
    };
    upload(view_.expert_ids, table.expert_ids);
    upload(view_.weights, table.weights);
    upload(payload_.rows, play.payload(rank()));
    upload(expert_rows_, play.values(10, rank(), scenario_.config.capacity_rows));
    std::vector<float> gradients;
    for (std::int64_t idx = 0; idx < num_weights_; ++idx) gradients.push_back(gradient(round, rank(), idx));
    upload(grad_weights_, gradients);
    arena_.fill(out_, std::byte{0xa5}, out_bytes_);
    arena_.fill(grad_out_, std::byte{0xa5}, out_bytes_);
    arena_.fill(grad_topk_, std::byte{0xa5}, play.table(rank()).num_tokens * view_.top_k * kFloatBytes);
  }

  [[nodiscard]] Mismatch check(const Play& play, int round, const Handle& handle, const std::string& what) {
    const auto prefixed = [&what](Mismatch mismatch) {
      if (mismatch) *mismatch = what + ": " + *mismatch;
      return mismatch;
    };
    const RoutingStats stats = handle.stats();
    const DispatchOutput& device = handle.output();
    HostOutput host;
    host.read_description(arena_, device, dispatcher_->layout());
    host.read_rows(arena_, device, dispatcher_->layout());
    EPISTLE_RETURN_MISMATCH(prefixed(check_description(play, rank(), host.output)));
    std::int64_t num_dropped = 0;
    for (const std::int64_t dropped : play.layout(rank()).expert_dropped) num_dropped += dropped;
    EPISTLE_RETURN_MISMATCH(prefixed(expect_equal(device.num_dropped, num_dropped, "num_dropped")));
    EPISTLE_RETURN_MISMATCH(prefixed(expect_equal(stats.num_tokens, view_.num_tokens, "stats().num_tokens")));
    std::vector<std::vector<std::byte>> payloads;
    for (int peer = 0; peer < group_.size(); ++peer) payloads.push_back(play.payload(peer));
    EPISTLE_RETURN_MISMATCH(
        prefixed(check_rows(play, rank(), host.output.rows, play.row_bytes(), payloads, "dispatch")));
    const std::vector<std::byte> out = arena_.read(out_, out_bytes_);
    const auto expected = play.combined(10, rank(), play.config().apply_weights);
    EPISTLE_RETURN_MISMATCH(prefixed(compare_bytes(out.data(), expected.data(), out.size(), "combine")));
    return prefixed(check_backward(play, round));
  }

  [[nodiscard]] Mismatch check_backward(const Play& play, int round) {
    const std::vector<std::byte> grad_out = arena_.read(grad_out_, out_bytes_);
    const auto expected = play.combined(10, rank(), false);
    EPISTLE_RETURN_MISMATCH(compare_bytes(grad_out.data(), expected.data(), grad_out.size(), "dispatch_backward"));
    const RoutingTable& table = play.table(rank());
    const auto grad_topk = arena_.read(grad_topk_, static_cast<std::int64_t>(table.expert_ids.size()));
    const ExpertPartition partition = dispatcher_->layout().partition();
    for (std::size_t entry = 0; entry < grad_topk.size(); ++entry) {
      const std::int32_t row = play.layout(rank()).dst_row[entry];
      const auto position = static_cast<std::int64_t>(entry) % view_.top_k;
      const std::int64_t idx = dispatcher_->layout().token_major() ? std::int64_t{row} * view_.top_k + position : row;
      const float wanted = row < 0 ? 0.0F : gradient(round, partition.rank_of(table.expert_ids[entry]), idx);
      EPISTLE_RETURN_MISMATCH(expect_equal(grad_topk[entry], wanted, fmt::format("grad_topk_weights[{}]", entry)));
    }
    return std::nullopt;
  }

  Group& group_;
  const Scenario& scenario_;
  std::unique_ptr<CudaDispatcher> dispatcher_;
  DeviceArena arena_;
  RoutingView view_;
  Payload payload_;
  std::byte* expert_rows_ = nullptr;
  std::byte* out_ = nullptr;
  std::int64_t out_bytes_ = 0;
  std::byte* grad_out_ = nullptr;
  float* grad_weights_ = nullptr;
  std::int64_t num_weights_ = 0;
  float* grad_topk_ = nullptr;
};

class CudaGraph : public OnGpu<::testing::TestWithParam<OutputLayout>> {};

TEST_P(CudaGraph, ReplaysWithOtherRouting) {
  Scenario scenario;
  scenario.config.hidden = 128;
  scenario.config.num_experts = 8;
  scenario.config.top_k = 3;
  scenario.config.max_tokens = 24;
  scenario.config.layout = GetParam();
  scenario.config.alignment = 4;
  scenario.config.sizing = Sizing::kCapacity;
  // What one routing drops another has room for.
  scenario.config.capacity_rows = GetParam() == OutputLayout::kTokenMajor ? 30 : 64;
  scenario.config.overflow = OverflowPolicy::kDrop;
  scenario.tokens_per_rank = {24, 17};
  std::vector<Mismatch> mismatches(scenario.tokens_per_rank.size());
  run_thread_ranks(static_cast<int>(mismatches.size()),
                   [&](Group& group) {
                     GraphRank rank(group, scenario);
                     mismatches[static_cast<std::size_t>(group.rank())] = rank.play();
                   },
                   {.timeout = kCudaTimeout});
  for (std::size_t rank = 0; rank < mismatches.size(); ++rank) {
    EXPECT_FALSE(mismatches[rank].has_value()) << "rank " << rank << ": " << *mismatches[rank];
  }
}

INSTANTIATE_TEST_SUITE_P(All, CudaGraph, ::testing::Values(OutputLayout::kTokenMajor, OutputLayout::kExpertMajor),
                         [](const auto& param_info) {
                           return std::string(param_info.param == OutputLayout::kTokenMajor ? "TokenMajor"
                                                                                            : "ExpertMajor");
                         });

}  // namespace
}  // namespace epistle::testing
