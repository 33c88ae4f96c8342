// Virtual ranks of one GPU that go on without some of them: what is left is bit for bit what the oracle makes of it,
// whether a rank was there before, has never launched a kernel, or comes back.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include <cuda_runtime_api.h>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "epistle/dispatcher.hpp"

#include "support/cuda_devices.hpp"
#include "support/cuda_play.hpp"
#include "support/dispatcher_names.hpp"
#include "support/go_on.hpp"
#include "support/placements.hpp"
#include "support/round_trip.hpp"

namespace epistle::testing {
namespace {

using std::chrono::milliseconds;

constexpr int kMaskRanks = 4;
constexpr milliseconds kImpatience{1'000};
constexpr milliseconds kLongestMeeting{15'000};

/// Those that can go on.
std::vector<std::string> masking_dispatchers() {
  std::vector<std::string> names;
  for (const std::string& name : one_gpu_dispatcher_names()) {
    if (find_dispatcher(name, Device::kCuda).capabilities().masks) names.push_back(name);
  }
  return names;
}

bool leaves_out(const std::vector<int>& masked, int rank) {
  return std::find(masked.begin(), masked.end(), rank) != masked.end();
}

Scenario scenario_without(const std::vector<int>& masked) {
  Scenario scenario;
  scenario.config = {.hidden = 32, .num_experts = 9, .top_k = 3, .max_tokens = 12};
  scenario.tokens_per_rank = {5, 12, 0, 9};
  scenario.masked = masked;
  return scenario;
}

struct Way {
  std::string name;
  Scenario scenario;
};

/// Layouts, sizings and payloads whose ways differ: with `roomy` capacity low_latency sends by lines.
std::vector<Way> ways_without(const std::vector<int>& masked) {
  std::vector<Way> ways;
  const auto add = [&](const std::string& name, const std::function<void(Scenario&)>& change) {
    Scenario scenario = scenario_without(masked);
    change(scenario);
    ways.push_back({name, scenario});
  };
  add("token rows, flat", [](Scenario& s) { s.config.order = SumOrder::kFlat; });
  add("expert rows, two buffers", [](Scenario& s) {
    s.config.layout = ExpertMajor{.alignment = 4};
    s.config.num_buffers = 2;
    s.stage_combine = true;
  });
  add("blocks that drop, fp8 on the way", [](Scenario& s) {
    s.config.layout = ExpertBlocks{.rows_per_expert = 6};
    s.config.sizing = Capacity{};
    s.config.overflow = OverflowPolicy::kDrop;
    s.config.wire = Fp8Blocks{};
    s.hot_experts = true;
  });
  add("token rows that drop, fp8, deepep_v2", [](Scenario& s) {
    s.config.sizing = Capacity{.rows_per_rank = 20};
    s.config.overflow = OverflowPolicy::kDrop;
    s.config.input = DType::kFp8E4m3;
    s.config.order = SumOrder::kDeepEpV2;
  });
  add("roomy blocks, fp8 on the way", [](Scenario& s) {
    s.config.layout = ExpertBlocks{.rows_per_expert = 48};
    s.config.sizing = Capacity{};
    s.config.wire = Fp8Blocks{};
    s.id_type = IdType::kInt64;
  });
  add("roomy token rows", [](Scenario& s) { s.config.sizing = Capacity{.rows_per_rank = 48}; });
  add("roomy expert rows, flat, placed", [](Scenario& s) {
    s.config.layout = ExpertMajor{.alignment = 4};
    s.config.sizing = Capacity{.rows_per_rank = 400};
    s.config.order = SumOrder::kFlat;
    s.placement_seed = 5;
    place_experts(s);
  });
  return ways;
}

/// Threads that wait for each other by other means than the group.
class CudaMeeting {
 public:
  explicit CudaMeeting(int num_ranks) : num_ranks_(num_ranks) {}
  void wait() {
    const int generation = num_arrived_.fetch_add(1) / num_ranks_;
    // A rank that has found a mismatch may not come.
    const auto give_up = std::chrono::steady_clock::now() + kLongestMeeting;
    while (num_arrived_.load() < (generation + 1) * num_ranks_ && std::chrono::steady_clock::now() < give_up) {
      std::this_thread::sleep_for(milliseconds(1));
    }
  }

 private:
  int num_ranks_;
  std::atomic<int> num_arrived_{0};
};

using Play = std::function<Mismatch(Group& group, CudaMeeting& meeting)>;

/// Plays on every rank, and expects no mismatch. Nobody gives memory back before all have played: that waits for the
/// whole GPU, and keeps kernels of others from being launched.
void expect_all_play(const Play& play, milliseconds timeout = kCudaTimeout) {
  CudaMeeting meeting(kMaskRanks);
  std::vector<Mismatch> found(kMaskRanks);
  try {
    run_thread_ranks(kMaskRanks,
                     [&](Group& group) {
                       Mismatch& mismatch = found[static_cast<std::size_t>(group.rank())];
                       try {
                         mismatch = play(group, meeting);
                       } catch (const Error& error) {
                         mismatch = fmt::format("{}: {}", to_string(error.code()), error.what());
                       }
                     },
                     {.timeout = timeout});
  } catch (const Error& error) {
    ADD_FAILURE() << to_string(error.code()) << ": " << error.what();
  }
  for (std::size_t rank = 0; rank < found.size(); ++rank) {
    EXPECT_FALSE(found[rank].has_value()) << "rank " << rank << ": " << *found[rank];
  }
}

/// An error is a mismatch too: every rank has to come to the meeting behind.
Mismatch outcome_as_mismatch(const std::function<Mismatch()>& play) {
  try {
    return play();
  } catch (const Error& error) {
    return fmt::format("{}: {}", to_string(error.code()), error.what());
  }
}

ErrorCode cuda_code_of(const std::function<void()>& call) {
  const Outcome outcome = outcome_of(call);
  return outcome ? outcome->code() : ErrorCode::kOk;
}

Mismatch expect_code(ErrorCode code, const std::function<void()>& call, const std::string& what) {
  const Outcome outcome = outcome_of(call);
  const ErrorCode found = outcome ? outcome->code() : ErrorCode::kOk;
  if (found == code) return std::nullopt;
  return fmt::format("{}: {} in place of {} ({})", what, to_string(found), to_string(code),
                     outcome ? outcome->what() : "no error");
}

class CudaMasks : public OnGpu<::testing::TestWithParam<std::string>> {
 protected:
  static Subject make_subject(Group& group, const Scenario& scenario, bool split_halves = false) {
    return Subject(group, GetParam(), scenario.config, on_cuda({.device = 0}, split_halves));
  }
};

TEST_P(CudaMasks, LeaveOutTokensAndExperts) {
  for (const std::vector<int>& masked : {std::vector<int>{0}, std::vector<int>{1}, std::vector<int>{3},
                                         std::vector<int>{0, 2}, std::vector<int>{1, 2, 3}}) {
    for (const Way& way : ways_without(masked)) {
      SCOPED_TRACE(::testing::PrintToString(masked) + ", " + way.name);
      if (const std::string reason = cannot_play(GetParam(), way.scenario); !reason.empty()) continue;
      expect_all_play([&](Group& group, CudaMeeting& meeting) -> Mismatch {
        Scenario whole = way.scenario;
        whole.masked.clear();
        Subject subject = make_subject(group, whole, masked.size() == 1);
        const auto play = [&]() -> Mismatch {
          EPISTLE_RETURN_MISMATCH(round_trip(subject, Round(whole, 0)));
          // Otherwise a rank may be told that it is left out before it has seen the end of its call.
          group.barrier();
          if (leaves_out(masked, group.rank())) return std::nullopt;
          group.set_mask(masked);
          EPISTLE_RETURN_MISMATCH(play_on(subject, way.scenario));
          Subject later = make_subject(group, way.scenario);
          return round_trip(later, Round(way.scenario, 0));
        };
        Mismatch found;
        try {
          found = play();
        } catch (const Error& error) {
          const bool is_told = error.code() == ErrorCode::kMaskedOut && leaves_out(masked, group.rank());
          if (!is_told) found = fmt::format("{}: {}", to_string(error.code()), error.what());
        }
        meeting.wait();
        return found;
      });
      if (HasFailure()) return;
    }
  }
}

TEST_P(CudaMasks, LeaveOutRanksThatWereNeverThere) {
  const std::vector<int> masked = {0, 2};
  for (const Way& way : ways_without(masked)) {
    SCOPED_TRACE(way.name);
    if (const std::string reason = cannot_play(GetParam(), way.scenario); !reason.empty()) continue;
    expect_all_play([&](Group& group, CudaMeeting&) -> Mismatch {
      if (leaves_out(masked, group.rank())) return std::nullopt;
      group.set_mask(masked);
      Subject subject = make_subject(group, way.scenario);
      return play_on(subject, way.scenario);
    });
    if (HasFailure()) return;
  }
}

/// A rank whose kernels never start is named, and the others go on; it comes back; another one goes.
TEST_P(CudaMasks, GoOnWithoutARankThatNeverLaunches) {
  const std::vector<Way> ways = ways_without({});
  for (const std::size_t idx : {std::size_t{1}, std::size_t{4}, std::size_t{5}}) {
    const Scenario& whole = ways[idx].scenario;
    SCOPED_TRACE(ways[idx].name);
    if (const std::string reason = cannot_play(GetParam(), whole); !reason.empty()) continue;
    expect_all_play(
        [&](Group& group, CudaMeeting& meeting) -> Mismatch {
          Subject subject = make_subject(group, whole);
          Mismatch found;
          for (const int victim : {2, 0}) {
            const auto play = [&]() -> Mismatch {
              EPISTLE_RETURN_MISMATCH(round_trip(subject, Round(whole, 0)));
              meeting.wait();
              if (group.rank() != victim) {
                const Round round(whole, 1);
                RankInputs inputs(round, group.rank());
                const Outcome outcome = outcome_of([&] { (void)subject.dispatch(inputs.prepare_and_dispatch()); });
                if (!outcome) return "the call went through without a rank";
                EPISTLE_RETURN_MISMATCH(expect_equal(outcome->context().peer_rank, victim, "the rank that is named"));
                EPISTLE_RETURN_MISMATCH(
                    expect_equal(subject.dispatcher().poll() != Health::kOk, true, "poll() tells of it"));
                EPISTLE_RETURN_MISMATCH(
                    expect_equal(subject.dispatcher().suspects() == std::vector<int>{victim}, true, "suspects()"));
                go_on_without(group, *outcome);
                EPISTLE_RETURN_MISMATCH(expect_equal(subject.dispatcher().poll() == Health::kOk, true, "poll() after"));
                Scenario rest = whole;
                rest.masked = {victim};
                EPISTLE_RETURN_MISMATCH(play_on(subject, rest));
              }
              return std::nullopt;
            };
            if (!found) found = outcome_as_mismatch(play);
            meeting.wait();
            group.clear_mask();
          }
          if (!found) found = round_trip(subject, Round(whole, 3));
          meeting.wait();
          return found;
        },
        kImpatience);
    if (HasFailure()) return;
  }
}

TEST_P(CudaMasks, TellARankThatItIsLeftOutAndLetItComeBack) {
  constexpr int kOut = 1;
  const Scenario whole = ways_without({})[4].scenario;
  Scenario rest = whole;
  rest.masked = {kOut};
  expect_all_play([&](Group& group, CudaMeeting& meeting) -> Mismatch {
    Subject subject = make_subject(group, whole);
    const auto play = [&]() -> Mismatch {
      const Round round(whole, 0);
      RankInputs inputs(round, group.rank());
      const Handle old = subject.prepare(inputs.prepare());
      Received held = subject.dispatch(inputs.dispatch(old));
      const ReceivedCopy before = subject.read(held);
      meeting.wait();
      if (group.rank() != kOut) {
        group.set_mask({kOut});
        EPISTLE_RETURN_MISMATCH(round_trip(subject, Round(rest, 0)));
        EPISTLE_RETURN_MISMATCH(expect_code(
            ErrorCode::kHandleMismatch, [&] { (void)subject.dispatch(inputs.dispatch(old)); }, "an old handle"));
        EPISTLE_RETURN_MISMATCH(round_trip(subject, Round(rest, 1)));
      }
      meeting.wait();
      if (group.rank() == kOut) {
        EPISTLE_RETURN_MISMATCH(expect_code(
            ErrorCode::kMaskedOut, [&] { (void)subject.prepare(inputs.prepare()); }, "prepare of a rank left out"));
        EPISTLE_RETURN_MISMATCH(expect_code(
            ErrorCode::kMaskedOut, [&] { subject.dispatcher().wait(); }, "wait of a rank left out"));
        EPISTLE_RETURN_MISMATCH(expect_equal(subject.dispatcher().poll() != Health::kOk, true, "its poll()"));
      }
      group.clear_mask();
      EPISTLE_RETURN_MISMATCH(expect_equal(subject.dispatcher().poll() == Health::kOk, true, "poll()"));
      EPISTLE_RETURN_MISMATCH(round_trip(subject, Round(whole, 1)));
      const ReceivedCopy after = subject.read(held);
      EPISTLE_RETURN_MISMATCH(
          expect_equal(after.row_bytes() == before.row_bytes(), true, "rows of a lease from before"));
      group.barrier();
      return std::nullopt;
    };
    const Mismatch found = outcome_as_mismatch(play);
    meeting.wait();
    return found;
  });
}

/// What ranks find wrong under a mask, they find as without.
TEST_P(CudaMasks, StillTellOfCallsThatDoNotGoTogether) {
  constexpr int kOut = 0;
  const Scenario rest = ways_without({kOut})[4].scenario;
  expect_all_play([&](Group& group, CudaMeeting& meeting) -> Mismatch {
    const auto play = [&]() -> Mismatch {
      if (group.rank() == kOut) return std::nullopt;
      group.set_mask({kOut});
      Subject subject = make_subject(group, rest);
      const Round round(rest, 0);
      RankInputs inputs(round, group.rank());
      const Handle first = subject.prepare(inputs.prepare());
      const Handle second = subject.prepare(inputs.prepare());
      EPISTLE_RETURN_MISMATCH(expect_code(
          ErrorCode::kShapeMismatch,
          [&] { (void)subject.dispatch(inputs.dispatch(group.rank() == 2 ? first : second)); }, "different handles"));
      EPISTLE_RETURN_MISMATCH(expect_code(
          ErrorCode::kShapeMismatch,
          [&] {
            if (group.rank() == 2) {
              (void)subject.prepare(inputs.prepare());
            } else {
              (void)subject.dispatch(inputs.dispatch(first));
            }
          },
          "different calls"));
      // An id of a rank that is left out must not stand twice either.
      std::vector<std::int32_t> ids = round.table(group.rank()).expert_ids;
      DispatchRequest request = inputs.prepare_and_dispatch();
      if (group.rank() == 1) {
        ids[0] = 0;
        ids[1] = 0;
        const RoutingTable& table = round.table(group.rank());
        request.expert_ids = {ids.data(), table.num_tokens, table.top_k};
      }
      EPISTLE_RETURN_MISMATCH(expect_code(
          group.rank() == 1 ? ErrorCode::kInvalidArgument : ErrorCode::kPeerRejected,
          [&] { (void)subject.dispatch(request); }, "an id that stands twice"));
      return play_on(subject, rest);
    };
    const Mismatch found = outcome_as_mismatch(play);
    meeting.wait();
    return found;
  });
}

/// The send half is forgotten with its call.
TEST_P(CudaMasks, ForgetHalvesThatAreOpen) {
  constexpr int kOut = 3;
  const Scenario whole = ways_without({})[5].scenario;
  Scenario rest = whole;
  rest.masked = {kOut};
  expect_all_play(
      [&](Group& group, CudaMeeting& meeting) -> Mismatch {
        Subject subject = make_subject(group, whole);
        const auto play = [&]() -> Mismatch {
          EPISTLE_RETURN_MISMATCH(round_trip(subject, Round(whole, 0)));
          meeting.wait();
          if (group.rank() == kOut) return std::nullopt;
          const Round round(whole, 1);
          RankInputs inputs(round, group.rank());
          const auto placed_request = [&] {
            TestMemory& memory = subject.memory();
            memory.begin_call();
            DispatchRequest request = inputs.prepare_and_dispatch();
            const RoutingTable& table = round.table(group.rank());
            const auto num_entries = static_cast<std::int64_t>(table.expert_ids.size());
            request.expert_ids.data = memory.place(request.expert_ids.data, num_entries * 4);
            request.weights.data = static_cast<const float*>(memory.place(request.weights.data, num_entries * 4));
            request.tokens.data = memory.place(request.tokens.data, table.num_tokens * whole.config.hidden * 2);
            return request;
          };
          const Outcome sent = outcome_of([&] {
            Pending open = subject.dispatcher().dispatch_send(placed_request(), subject.stream());
            (void)subject.dispatcher().dispatch_receive(std::move(open), subject.stream());
            subject.dispatcher().wait();
          });
          if (!sent) return "the call went through without a rank";
          EPISTLE_RETURN_MISMATCH(expect_equal(sent->context().peer_rank, kOut, "the rank that is named"));
          go_on_without(group, *sent);
          EPISTLE_RETURN_MISMATCH(round_trip(subject, Round(rest, 1)));
          // One that is open while the mask is changed.
          Pending forgotten = subject.dispatcher().dispatch_send(placed_request(), subject.stream());
          group.set_mask({kOut});
          EPISTLE_RETURN_MISMATCH(expect_equal(cuda_code_of([&] {
                                                 (void)subject.dispatcher().dispatch_receive(std::move(forgotten),
                                                                                             subject.stream());
                                               }) != ErrorCode::kOk,
                                               true, "a receive half from before"));
          return play_on(subject, rest);
        };
        const Mismatch found = outcome_as_mismatch(play);
        meeting.wait();
        return found;
      },
      kImpatience);
}

/// A graph from before a change of the mask is to be captured anew. Where it runs all the same, it does nothing.
TEST_P(CudaMasks, MakeGraphsFromBeforeDoNothing) {
  constexpr int kOut = 2;
  const Scenario whole = ways_without({})[5].scenario;
  Scenario rest = whole;
  rest.masked = {kOut};
  expect_all_play([&](Group& group, CudaMeeting& meeting) -> Mismatch {
    Subject subject = make_subject(group, whole);
    DeviceArena arena(0, DeviceArena::kDefaultBytes);
    cudaGraphExec_t exec = nullptr;
    const auto play = [&]() -> Mismatch {
      EPISTLE_RETURN_MISMATCH(round_trip(subject, Round(whole, 0)));
      const Round round(whole, 1);
      RankInputs inputs(round, group.rank());
      const RoutingTable& table = round.table(group.rank());
      const auto num_entries = static_cast<std::int64_t>(table.expert_ids.size());
      DispatchRequest request = inputs.prepare_and_dispatch();
      request.expert_ids.data = arena.copy_in(request.expert_ids.data, num_entries * 4);
      request.weights.data = reinterpret_cast<const float*>(arena.copy_in(request.weights.data, num_entries * 4));
      request.tokens.data = arena.copy_in(request.tokens.data, table.num_tokens * whole.config.hidden * 2);
      const auto stream = subject.stream().get();
      group.barrier();
      if (cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) != cudaSuccess) return "no capture";
      Received received = subject.dispatcher().dispatch(request, subject.stream());
      cudaGraph_t graph = nullptr;
      if (cudaStreamEndCapture(stream, &graph) != cudaSuccess) return "the capture did not end";
      if (cudaGraphInstantiate(&exec, graph, 0) != cudaSuccess) return "no graph";
      (void)cudaGraphDestroy(graph);
      if (cudaGraphUpload(exec, stream) != cudaSuccess) return "no upload";
      (void)cudaStreamSynchronize(stream);
      group.barrier();
      if (cudaGraphLaunch(exec, stream) != cudaSuccess) return "no launch";
      subject.dispatcher().wait();
      const Checker checker(round);
      EPISTLE_RETURN_MISMATCH(checker.check_received(group.rank(), subject.read(received).data(), "the graph"));
      received.release();
      meeting.wait();
      if (group.rank() == kOut) return std::nullopt;
      group.set_mask({kOut});
      EPISTLE_RETURN_MISMATCH(round_trip(subject, Round(rest, 1)));
      group.barrier();
      for (int replay = 0; replay < 2; ++replay) {
        if (cudaGraphLaunch(exec, stream) != cudaSuccess) return "no launch after the change";
        const cudaError_t error = cudaStreamSynchronize(stream);
        if (error != cudaSuccess) return fmt::format("a graph from before: {}", cudaGetErrorString(error));
        EPISTLE_RETURN_MISMATCH(round_trip(subject, Round(rest, 2 + replay)));
      }
      group.barrier();
      return std::nullopt;
    };
    const Mismatch found = outcome_as_mismatch(play);
    meeting.wait();
    if (exec != nullptr) (void)cudaGraphExecDestroy(exec);
    return found;
  });
}

INSTANTIATE_TEST_SUITE_P(All, CudaMasks, ::testing::ValuesIn(masking_dispatchers()),
                         [](const auto& param_info) { return param_info.param; });

/// The others say what they cannot do.
TEST(CudaMaskChange, IsRefusedByDispatchersThatWaitForAllRanks) {
  if (const std::string reason = missing_gpus(1); !reason.empty()) GTEST_SKIP() << reason;
  for (const std::string& name : {std::string("hybrid"), std::string("alltoall")}) {
    EXPECT_FALSE(find_dispatcher(name, Device::kCuda).capabilities().masks) << name;
  }
}

}  // namespace
}  // namespace epistle::testing
