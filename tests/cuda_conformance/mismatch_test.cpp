// Every pair of calls that ranks can make at once, refusals included: what does not go together is an error on all
// ranks, nothing has moved, and the dispatcher goes on.
#include <algorithm>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "epistle/group.hpp"

#include "support/cuda_devices.hpp"
#include "support/cuda_play.hpp"
#include "support/dispatcher_names.hpp"
#include "support/round_trip.hpp"

namespace epistle::testing {
namespace {

constexpr std::byte kMark{0x5a};

/// What one rank has at hand: a dispatcher, two handles, and buffers on its device that are large enough for any call.
class Rig {
 public:
  Rig(Group& group, const std::string& name, const Scenario& scenario, const CudaOptions& options)
      : round_(scenario, 0),
        later_(scenario, 1),
        subject_(group, name, scenario.config, on_cuda(options)),
        memory_(dispatcher().device_ordinal(), DeviceArena::kDefaultBytes) {
    const RoutingTable& table = round_.table(group.rank());
    const ResolvedConfig& config = round_.config();
    ids_ = {static_cast<const std::int32_t*>(place(table.expert_ids)), table.num_tokens, table.top_k};
    weights_ = {static_cast<const float*>(place(table.weights))};
    tokens_ = {.data = place(round_.payload(group.rank())),
               .num_rows = table.num_tokens,
               .hidden = config.hidden,
               .dtype = config.dtype};
    out_ = {.data = arena().take(table.num_tokens * round_.output_row_bytes()),
            .num_rows = table.num_tokens,
            .hidden = config.combine_hidden,
            .dtype = config.combine_dtype};
    grad_probs_ = reinterpret_cast<float*>(arena().take(table.num_tokens * table.top_k * 4));
    group.barrier();
    handle_ = make_handle();
    other_handle_ = make_handle();
    dispatcher().wait();
    const std::int64_t num_rows = handle_.description().num_rows;
    const auto per_row = static_cast<std::int64_t>(Checker(round_).weights_per_row());
    grad_weights_ = reinterpret_cast<float*>(arena().take(num_rows * per_row * 4));
    Received received = dispatcher().dispatch(dispatch_request(handle_), stream());
    dispatcher().wait();
    received_rows_ = received.rows();
    outputs_ = received.expert_outputs();
    saved_rows_ = outputs_;
    saved_rows_.data = arena().take(num_rows * round_.output_row_bytes());
  }

  [[nodiscard]] Dispatcher& dispatcher() { return subject_.dispatcher(); }

  void prepare() { (void)make_handle(); }
  void prepare_and_dispatch() { (void)dispatcher().dispatch(dispatch_request(), stream()); }
  void dispatch() { (void)dispatcher().dispatch(dispatch_request(handle_), stream()); }
  void dispatch_other() { (void)dispatcher().dispatch(dispatch_request(other_handle_), stream()); }
  void dispatch_halves() {
    (void)dispatcher().dispatch_receive(dispatcher().dispatch_send(dispatch_request(handle_), stream()), stream());
  }
  void combine() { dispatcher().combine(combine_request(handle_), stream()); }
  void combine_other() { dispatcher().combine(combine_request(other_handle_), stream()); }
  void combine_halves() {
    dispatcher().combine_receive(dispatcher().combine_send(combine_request(handle_), stream()), stream());
  }
  void dispatch_backward(bool with_weights) {
    dispatcher().dispatch_backward(backward_request(with_weights), stream());
  }
  void combine_backward() { (void)dispatcher().combine_backward(gradient_request(), stream()); }

  void refuse_prepare() {
    IdsView bad = ids_;
    ++bad.top_k;
    (void)dispatcher().prepare({.expert_ids = bad, .weights = weights_}, stream());
  }
  void refuse_prepare_and_dispatch() {
    DispatchRequest bad = dispatch_request();
    ++bad.expert_ids.top_k;
    (void)dispatcher().dispatch(bad, stream());
  }
  void refuse_second_half() {
    DispatchRequest bad = dispatch_request();
    bad.tokens.data = nullptr;
    (void)dispatcher().dispatch(bad, stream());
  }
  void refuse_dispatch() {
    DispatchRequest bad = dispatch_request(handle_);
    bad.tokens.data = nullptr;
    (void)dispatcher().dispatch(bad, stream());
  }
  void refuse_combine() {
    CombineRequest bad = combine_request(handle_);
    --bad.out.num_rows;
    dispatcher().combine(bad, stream());
  }
  void refuse_dispatch_backward() {
    DispatchBackwardRequest bad = backward_request(true);
    --bad.grad_tokens.num_rows;
    dispatcher().dispatch_backward(bad, stream());
  }
  void refuse_combine_backward() {
    CombineBackwardRequest bad = gradient_request();
    bad.grad_out.data = nullptr;
    (void)dispatcher().combine_backward(bad, stream());
  }

  /// Fills what peers read and write with a mark.
  void mark() {
    for (const Rows& rows : {received_rows_, outputs_}) {
      memory_.fill(rows.data, kMark, rows.num_rows * rows.row_bytes());
    }
  }
  /// What has changed of it. This rank's own dispatch may have written to its rows, agreed on or not.
  [[nodiscard]] Mismatch check_mark(bool dispatched) {
    if (!dispatched && has_changed(received_rows_)) return "received rows have changed";
    if (has_changed(outputs_)) return "expert outputs have changed";
    return std::nullopt;
  }

  [[nodiscard]] Mismatch round_trip_after() { return round_trip(subject_, later_); }

 private:
  [[nodiscard]] DeviceArena& arena() { return memory_.arena(); }
  [[nodiscard]] Stream stream() const { return subject_.stream(); }
  template <typename Values>
  [[nodiscard]] void* place(const Values& values) {
    return memory_.place(values.data(), static_cast<std::int64_t>(values.size() * sizeof(values[0])));
  }
  [[nodiscard]] Handle make_handle() {
    return dispatcher().prepare({.expert_ids = ids_, .weights = weights_}, stream());
  }
  [[nodiscard]] DispatchRequest dispatch_request(const Handle& handle) const {
    return {.handle = handle, .tokens = tokens_};
  }
  /// prepare and dispatch in one call.
  [[nodiscard]] DispatchRequest dispatch_request() const {
    return {.expert_ids = ids_, .weights = weights_, .tokens = tokens_};
  }
  [[nodiscard]] CombineRequest combine_request(const Handle& handle) const {
    return {.handle = handle, .rows = outputs_, .out = out_};
  }
  [[nodiscard]] DispatchBackwardRequest backward_request(bool with_weights) const {
    return {.handle = handle_,
            .grad_rows = outputs_,
            .grad_weights = with_weights ? grad_weights_ : nullptr,
            .grad_tokens = out_,
            .grad_probs = with_weights ? grad_probs_ : nullptr};
  }
  [[nodiscard]] CombineBackwardRequest gradient_request() const {
    return {.handle = handle_, .grad_out = out_, .saved_rows = saved_rows_, .grad_weights = grad_weights_};
  }
  [[nodiscard]] bool has_changed(const Rows& rows) {
    const auto bytes = arena().read(static_cast<const std::byte*>(rows.data), rows.num_rows * rows.row_bytes());
    return std::any_of(bytes.begin(), bytes.end(), [](std::byte byte) { return byte != kMark; });
  }

  Round round_;
  Round later_;
  Subject subject_;
  CudaMemory memory_;  ///< on a stream of its own, which nothing but copies uses
  IdsView ids_;
  WeightsView weights_;
  ConstRows tokens_;
  Handle handle_;
  Handle other_handle_;
  Rows out_;
  Rows received_rows_;  ///< of the one buffer, whoever holds it
  Rows outputs_;
  Rows saved_rows_;
  float* grad_probs_ = nullptr;
  float* grad_weights_ = nullptr;
};

struct CallKind {
  std::string name;
  std::string meets;                 ///< calls of one name here go together
  std::optional<ErrorCode> refusal;  ///< what this rank throws itself
  bool dispatches = false;           ///< may write the caller's own received rows
  std::function<void(Rig&)> make;
};

/// A dispatch with ids whose first half is in order.
const std::string kLateRefusal = "prepare_and_refused_dispatch";

const std::vector<CallKind>& call_kinds() {
  static const std::vector<CallKind> kinds = {
      {"prepare", "prepare", {}, false, &Rig::prepare},
      {"prepare_and_dispatch", "prepare_and_dispatch", {}, true, &Rig::prepare_and_dispatch},
      {"dispatch", "dispatch", {}, true, &Rig::dispatch},
      {"dispatch_halves", "dispatch", {}, true, &Rig::dispatch_halves},
      {"dispatch_other", "dispatch_other", {}, true, &Rig::dispatch_other},
      {"combine", "combine", {}, false, &Rig::combine},
      {"combine_halves", "combine", {}, false, &Rig::combine_halves},
      {"combine_other", "combine_other", {}, false, &Rig::combine_other},
      {"dispatch_backward", "dispatch_backward", {}, false, [](Rig& rig) { rig.dispatch_backward(false); }},
      {"dispatch_backward_weights", "weights", {}, false, [](Rig& rig) { rig.dispatch_backward(true); }},
      {"combine_backward", "combine_backward", {}, false, &Rig::combine_backward},
      {"refused_prepare", "", ErrorCode::kInvalidArgument, false, &Rig::refuse_prepare},
      {"refused_prepare_and_dispatch", "", ErrorCode::kInvalidArgument, false, &Rig::refuse_prepare_and_dispatch},
      {kLateRefusal, "prepare_and_dispatch", ErrorCode::kInvalidArgument, true, &Rig::refuse_second_half},
      {"refused_dispatch", "", ErrorCode::kInvalidArgument, false, &Rig::refuse_dispatch},
      {"refused_combine", "", ErrorCode::kBufferTooSmall, false, &Rig::refuse_combine},
      {"refused_dispatch_backward", "", ErrorCode::kBufferTooSmall, false, &Rig::refuse_dispatch_backward},
      {"refused_combine_backward", "", ErrorCode::kInvalidArgument, false, &Rig::refuse_combine_backward},
  };
  return kinds;
}

/// The code that a rank must see; kOk = none. `one_call`: a dispatch with ids has no halves of which only one is in
/// order.
ErrorCode expected_code(const CallKind& own, const CallKind& other, SizingMode sizing, bool one_call) {
  const bool own_late = own.name == kLateRefusal && !one_call;
  const bool other_late = other.name == kLateRefusal && !one_call;
  if (own_late && sizing == SizingMode::kExact && own.meets != other.meets) {
    // The host waits in between, and finds the first half wrong.
    return other.refusal ? ErrorCode::kPeerRejected : ErrorCode::kShapeMismatch;
  }
  if (other_late && !own.refusal && own.meets != other.meets) return ErrorCode::kShapeMismatch;
  if (own.refusal) return *own.refusal;
  if (other.refusal) return ErrorCode::kPeerRejected;
  return own.meets == other.meets ? ErrorCode::kOk : ErrorCode::kShapeMismatch;
}

struct PairsParam {
  std::string dispatcher;
  std::string name;
  OutputLayout layout;
  SizingMode sizing;
  int num_ranks;
  bool own_gpus;
  CudaMover mover = CudaMover::kAuto;
};

class CudaPairs : public OnGpu<::testing::TestWithParam<PairsParam>> {
 protected:
  [[nodiscard]] static Scenario scenario() {
    Scenario scenario;
    scenario.config.hidden = 64;
    scenario.config.num_experts = 8;
    scenario.config.top_k = 2;
    scenario.config.max_tokens = 12;
    set_layout(scenario.config, GetParam().layout, GetParam().sizing, 24 * GetParam().num_ranks);
    scenario.tokens_per_rank.assign(static_cast<std::size_t>(GetParam().num_ranks), 12);
    scenario.missing_probability = 0.0;
    return scenario;
  }
};

/// One rank's part in all pairs. Ends at the first pair that leaves it unfit for the next.
Mismatch play_pairs(Group& group, const std::string& dispatcher, const Scenario& scenario, const CudaOptions& options) {
  Rig rig(group, dispatcher, scenario, options);
  const SizingMode sizing = resolve_config(scenario.config, group.size()).sizing;
  const bool one_call = (dispatcher == "low_latency" || dispatcher == "auto") && sizing == SizingMode::kCapacity;
  const bool copies = options.mover == CudaMover::kCopyEngines;
  // With more ranks one of them differs from all others.
  const int odd_rank = group.size() - 1;
  const bool all_pairs = group.size() == 2;
  for (const CallKind& most : call_kinds()) {
    if (!all_pairs && most.name != most.meets) continue;
    for (const CallKind& odd : call_kinds()) {
      const CallKind& own = group.rank() == odd_rank ? odd : most;
      const CallKind& other = group.rank() == odd_rank ? most : odd;
      const std::string what = fmt::format("{} against {} on the last rank: ", most.name, odd.name);
      rig.mark();
      group.barrier();
      const Outcome outcome = outcome_of([&] {
        own.make(rig);
        rig.dispatcher().wait();
      });
      const ErrorCode code = outcome ? outcome->code() : ErrorCode::kOk;
      const ErrorCode expected = expected_code(own, other, sizing, one_call);
      if (code != expected) {
        return what + fmt::format("expected {}, got {}", to_string(expected), outcome ? outcome->what() : "no error");
      }
      if (code == ErrorCode::kShapeMismatch || code == ErrorCode::kPeerRejected) {
        const int peer = outcome->context().peer_rank;
        if (outcome->context().rank != group.rank() || peer < 0 || (group.rank() != odd_rank && peer != odd_rank)) {
          return what + "the wrong ranks are named: " + outcome->what();
        }
      }
      group.barrier();
      if (expected != ErrorCode::kOk) {
        if (const Mismatch changed = rig.check_mark(own.dispatches || copies)) return what + *changed;
      }
      if (const Mismatch after = rig.round_trip_after()) return what + "afterwards " + *after;
      group.barrier();
    }
  }
  return std::nullopt;
}

TEST_P(CudaPairs, AgreeOnErrorsAndGoOn) {
  const PairsParam& param = GetParam();
  if (param.own_gpus) {
    if (const std::string reason = missing_gpus(param.num_ranks); !reason.empty()) GTEST_SKIP() << reason;
  }
  std::vector<Mismatch> mismatches(static_cast<std::size_t>(param.num_ranks));
  const Scenario all = scenario();
  try {
    run_thread_ranks(param.num_ranks,
                     [&](Group& group) {
                       const auto rank = static_cast<std::size_t>(group.rank());
                       const auto outcome = outcome_of([&] {
                         mismatches[rank] =
                             play_pairs(group, param.dispatcher, all,
                                        {.device = param.own_gpus ? group.rank() : 0, .mover = param.mover});
                       });
                       if (outcome && !mismatches[rank]) mismatches[rank] = outcome->what();
                     },
                     {.timeout = kCudaTimeout});
  } catch (const Error& error) {
    ADD_FAILURE() << to_string(error.code()) << ": " << error.what();
  }
  for (std::size_t rank = 0; rank < mismatches.size(); ++rank) {
    EXPECT_FALSE(mismatches[rank].has_value()) << "rank " << rank << ": " << *mismatches[rank];
  }
}

std::vector<PairsParam> pairs_params() {
  std::vector<PairsParam> params;
  for (const std::string& dispatcher : one_gpu_dispatcher_names()) {
    for (const bool own_gpus : {false, true}) {
      const std::string where = own_gpus ? "OwnGpus" : "OneGpu";
      for (const SizingMode sizing : {SizingMode::kExact, SizingMode::kCapacity}) {
        const std::string how = where + (sizing == SizingMode::kExact ? "Exact" : "Capacity");
        params.push_back({dispatcher, how + "TokenMajor", OutputLayout::kTokenMajor, sizing, 2, own_gpus});
        params.push_back({dispatcher, how + "ExpertMajor", OutputLayout::kExpertMajor, sizing, 2, own_gpus});
      }
    }
    params.push_back({dispatcher, "OneGpuFourRanks", OutputLayout::kTokenMajor, SizingMode::kCapacity, 4, false});
    params.push_back(
        {dispatcher, "OneGpuFourRanksExpertMajor", OutputLayout::kExpertMajor, SizingMode::kExact, 4, false});
  }
  for (const bool own_gpus : {false, true}) {
    params.push_back({"direct", own_gpus ? "OwnGpusCopyEngines" : "OneGpuCopyEngines", OutputLayout::kTokenMajor,
                      SizingMode::kExact, 2, own_gpus, CudaMover::kCopyEngines});
  }
  return params;
}

INSTANTIATE_TEST_SUITE_P(All, CudaPairs, ::testing::ValuesIn(pairs_params()), [](const auto& param_info) {
  return param_info.param.dispatcher + "_" + param_info.param.name;
});

}  // namespace
}  // namespace epistle::testing
