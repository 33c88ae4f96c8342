// Every pair of calls that ranks can make at once, refusals included: what does not go together is an error on all
// ranks, nothing has moved, and the dispatcher goes on.
#include <algorithm>
#include <array>
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
#include "support/device_arena.hpp"
#include "support/round_trip.hpp"

namespace epistle::testing {
namespace {

constexpr std::byte kMark{0x5a};

/// What one rank has at hand: a dispatcher, two handles, and buffers on its device that are large enough for any call.
class Rig {
 public:
  Rig(Group& group, const Scenario& scenario, const CudaOptions& options)
      : group_(group),
        play_(scenario, 0),
        later_(scenario, 1),
        dispatcher_("direct", group, scenario.config, {.cuda = options, .poison = false}),
        arena_(dispatcher_.inner().device(), DeviceArena::kDefaultBytes) {
    const RoutingTable& table = play_.table(group.rank());
    view_ = table.view();
    view_.expert_ids = arena_.copy_in(table.expert_ids.data(), bytes_of(table.expert_ids));
    view_.weights = reinterpret_cast<const float*>(arena_.copy_in(table.weights.data(), bytes_of(table.weights)));
    const auto rows = play_.payload(group.rank());
    payload_ = {.rows = arena_.copy_in(rows.data(), bytes_of(rows)), .num_tokens = table.num_tokens};
    out_bytes_ = table.num_tokens * play_.combine_row_bytes();
    out_ = arena_.take(out_bytes_);
    grad_topk_ = reinterpret_cast<float*>(arena_.take(table.num_tokens * table.top_k * 4));
    group.barrier();
    handle_ = inner().prepare(view_);
    other_handle_ = inner().prepare(view_);
    inner().synchronize();
    const std::int64_t num_weights = output().num_rows * inner().layout().weights_per_row();
    grad_weights_ = reinterpret_cast<float*>(arena_.take(num_weights * 4));
    saved_rows_ = arena_.take(output().num_rows * play_.combine_row_bytes());
    (void)inner().dispatch(handle_, payload_);
    inner().synchronize();
  }

  [[nodiscard]] CudaDispatcher& inner() const { return dispatcher_.inner(); }

  void prepare() { (void)inner().prepare(view_); }
  void prepare_and_dispatch() { (void)inner().prepare_and_dispatch(view_, payload_); }
  void dispatch() { (void)inner().dispatch(handle_, payload_); }
  void dispatch_other() { (void)inner().dispatch(other_handle_, payload_); }
  void dispatch_halves() {
    inner().dispatch_send(handle_, payload_);
    (void)inner().dispatch_receive(handle_);
  }
  void combine() { inner().combine(handle_, output().combine_rows, out_, out_bytes_); }
  void combine_other() { inner().combine(other_handle_, output().combine_rows, out_, out_bytes_); }
  void combine_halves() {
    inner().combine_send(handle_, output().combine_rows);
    inner().combine_receive(handle_, out_, out_bytes_);
  }
  void dispatch_backward(bool with_weights) {
    inner().dispatch_backward(handle_, output().combine_rows, with_weights ? grad_weights_ : nullptr, out_, out_bytes_,
                              with_weights ? grad_topk_ : nullptr);
  }
  void combine_backward() { (void)inner().combine_backward(handle_, out_, saved_rows_, grad_weights_); }

  void refuse_prepare() {
    RoutingView bad = view_;
    ++bad.top_k;
    (void)inner().prepare(bad);
  }
  void refuse_prepare_and_dispatch() {
    RoutingView bad = view_;
    ++bad.top_k;
    (void)inner().prepare_and_dispatch(bad, payload_);
  }
  void refuse_second_half() { (void)inner().prepare_and_dispatch(view_, {.num_tokens = payload_.num_tokens}); }
  void refuse_dispatch() { (void)inner().dispatch(handle_, {.num_tokens = payload_.num_tokens}); }
  void refuse_combine() { inner().combine(handle_, output().combine_rows, out_, out_bytes_ - 1); }
  void refuse_dispatch_backward() {
    inner().dispatch_backward(handle_, output().combine_rows, grad_weights_, out_, out_bytes_ - 1, grad_topk_);
  }
  void refuse_combine_backward() { (void)inner().combine_backward(handle_, nullptr, saved_rows_, grad_weights_); }

  /// Fills what peers read and write with a mark.
  void mark() {
    for (const auto& [rows, num_bytes] : shared_rows()) arena_.fill(rows, kMark, num_bytes);
  }
  /// What has changed of it. This rank's own dispatch may have written to its rows, agreed on or not.
  [[nodiscard]] Mismatch check_mark(bool dispatched) {
    const auto all = shared_rows();
    for (std::size_t part = 0; part < all.size(); ++part) {
      if (part == 0 && dispatched) continue;
      const auto bytes = arena_.read(all[part].first, all[part].second);
      if (std::any_of(bytes.begin(), bytes.end(), [](std::byte byte) { return byte != kMark; })) {
        return std::string(part == 0 ? "received rows" : "combine rows") + " have changed";
      }
    }
    return std::nullopt;
  }

  [[nodiscard]] Mismatch round_trip_after() { return round_trip(dispatcher_, group_.rank(), later_); }

 private:
  template <typename Values>
  static std::int64_t bytes_of(const Values& values) {
    return static_cast<std::int64_t>(values.size() * sizeof(values[0]));
  }
  [[nodiscard]] const DispatchOutput& output() const { return handle_.output(); }
  [[nodiscard]] std::array<std::pair<std::byte*, std::int64_t>, 2> shared_rows() const {
    return {{{output().rows, output().num_rows * play_.row_bytes()},
             {output().combine_rows, output().num_rows * play_.combine_row_bytes()}}};
  }

  Group& group_;
  Play play_;
  Play later_;
  StagedCudaDispatcher dispatcher_;
  DeviceArena arena_;
  RoutingView view_;
  Payload payload_;
  Handle handle_;
  Handle other_handle_;
  std::byte* out_ = nullptr;
  std::int64_t out_bytes_ = 0;
  float* grad_topk_ = nullptr;
  float* grad_weights_ = nullptr;
  std::byte* saved_rows_ = nullptr;
};

struct CallKind {
  std::string name;
  std::string meets;                 ///< calls of one name here go together
  std::optional<ErrorCode> refusal;  ///< what this rank throws itself
  bool dispatches = false;           ///< may write the caller's own received rows
  std::function<void(Rig&)> make;
};

/// prepare_and_dispatch whose first half is in order.
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

/// The code that a rank must see; kOk = none.
ErrorCode expected_code(const CallKind& own, const CallKind& other, Sizing sizing) {
  const bool own_late = own.name == kLateRefusal;
  const bool other_late = other.name == kLateRefusal;
  if (own_late && sizing == Sizing::kExact && own.meets != other.meets) {
    // The host waits in between, and finds the first half wrong.
    return other.refusal ? ErrorCode::kPeerRejected : ErrorCode::kShapeMismatch;
  }
  if (other_late && !own.refusal && own.meets != other.meets) return ErrorCode::kShapeMismatch;
  if (own.refusal) return *own.refusal;
  if (other.refusal) return ErrorCode::kPeerRejected;
  return own.meets == other.meets ? ErrorCode::kOk : ErrorCode::kShapeMismatch;
}

struct PairsParam {
  std::string name;
  OutputLayout layout;
  Sizing sizing;
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
    scenario.config.layout = GetParam().layout;
    scenario.config.sizing = GetParam().sizing;
    if (GetParam().sizing == Sizing::kCapacity) scenario.config.capacity_rows = 24 * GetParam().num_ranks;
    scenario.tokens_per_rank.assign(static_cast<std::size_t>(GetParam().num_ranks), 12);
    scenario.missing_probability = 0.0;
    return scenario;
  }
};

/// One rank's part in all pairs. Ends at the first pair that leaves it unfit for the next.
Mismatch play_pairs(Group& group, const Scenario& scenario, const CudaOptions& options) {
  Rig rig(group, scenario, options);
  const Sizing sizing = scenario.config.sizing;
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
        rig.inner().synchronize();
      });
      const ErrorCode code = outcome ? outcome->code() : ErrorCode::kOk;
      const ErrorCode expected = expected_code(own, other, sizing);
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
                         mismatches[rank] = play_pairs(
                             group, all, {.device = param.own_gpus ? group.rank() : 0, .mover = param.mover});
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
  for (const bool own_gpus : {false, true}) {
    const std::string where = own_gpus ? "OwnGpus" : "OneGpu";
    for (const Sizing sizing : {Sizing::kExact, Sizing::kCapacity}) {
      const std::string how = where + (sizing == Sizing::kExact ? "Exact" : "Capacity");
      params.push_back({how + "TokenMajor", OutputLayout::kTokenMajor, sizing, 2, own_gpus});
      params.push_back({how + "ExpertMajor", OutputLayout::kExpertMajor, sizing, 2, own_gpus});
    }
  }
  for (const bool own_gpus : {false, true}) {
    params.push_back({own_gpus ? "OwnGpusCopyEngines" : "OneGpuCopyEngines", OutputLayout::kTokenMajor, Sizing::kExact,
                      2, own_gpus, CudaMover::kCopyEngines});
  }
  params.push_back({"OneGpuFourRanks", OutputLayout::kTokenMajor, Sizing::kCapacity, 4, false});
  params.push_back({"OneGpuFourRanksExpertMajor", OutputLayout::kExpertMajor, Sizing::kExact, 4, false});
  return params;
}

INSTANTIATE_TEST_SUITE_P(All, CudaPairs, ::testing::ValuesIn(pairs_params()),
                         [](const auto& param_info) { return param_info.param.name; });

}  // namespace
}  // namespace epistle::testing
