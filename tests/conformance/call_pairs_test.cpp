// Every pair of different calls that two ranks make at once: all ranks get an error that says so, at once, and then the
// group and its dispatchers go on.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>
#include <iostream>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "epistle/dispatcher.hpp"
#include "epistle/group.hpp"

#include "support/dispatcher_names.hpp"
#include "support/process_ranks.hpp"
#include "support/round_trip.hpp"
#include "support/sanitizers.hpp"

namespace epistle::testing {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds kPairTimeout{6000};
// An error that took longer may have been the timeout.
constexpr milliseconds kAtOnce{3000};
// Pairs that end a group, before a test gives up.
constexpr int kMaxBroken = 3;

Scenario pair_scenario(int num_ranks, std::uint64_t seed) {
  Scenario scenario;
  scenario.config = {.hidden = 32, .num_experts = 7, .top_k = 3, .max_tokens = 12};
  scenario.seed = seed;
  scenario.missing_probability = 0.0;
  for (int rank = 0; rank < num_ranks; ++rank) scenario.tokens_per_rank.push_back(5 + rank);
  return scenario;
}

/// A dispatcher with two handles, and buffers for every call with them.
class Desk {
 public:
  Desk(Group& group, const std::string& name)
      : scenario_(pair_scenario(group.size(), 3)),
        round_(scenario_, 0),
        rank_(group.rank()),
        inputs_(round_, rank_),
        subject_(group, name, scenario_.config),
        first_(prepare()),
        second_(prepare()),
        rows_(inputs_.output_rows(num_rows(), round_.values(3, rank_, num_rows()))),
        out_(inputs_.sums()),
        grad_weights_(static_cast<std::size_t>(num_rows()) * 3 + 1, 1.0F),
        grad_probs_(round_.table(rank_).expert_ids.size(), 0.0F) {}

  [[nodiscard]] Subject& subject() { return subject_; }
  [[nodiscard]] Dispatcher& dispatcher() { return subject_.dispatcher(); }
  [[nodiscard]] const Handle& handle(int idx) const { return idx == 0 ? first_ : second_; }
  [[nodiscard]] DispatchRequest dispatch_request(const Handle& handle) { return inputs_.dispatch(handle); }
  /// After a change of the mask, which ends all handles.
  void renew() {
    first_ = prepare();
    second_ = prepare();
  }
  [[nodiscard]] Handle prepare() { return dispatcher().prepare(inputs_.prepare()); }

  void prepare_with_other_top_k() {
    PrepareRequest request = inputs_.prepare();
    request.expert_ids.top_k = 2;
    (void)dispatcher().prepare(request);
  }
  void dispatch(int idx) { (void)dispatcher().dispatch(inputs_.dispatch(handle(idx))); }
  void dispatch_in_halves() {
    (void)dispatcher().dispatch_receive(dispatcher().dispatch_send(inputs_.dispatch(first_)));
  }
  void dispatch_of_nothing() {
    DispatchRequest request = inputs_.dispatch(first_);
    request.tokens.data = nullptr;
    (void)dispatcher().dispatch(request);
  }
  void combine(int idx) { dispatcher().combine(combine_request(idx)); }
  void combine_in_halves() { dispatcher().combine_receive(dispatcher().combine_send(combine_request(0))); }
  void combine_into_too_little() {
    CombineRequest request = combine_request(0);
    --request.out.num_rows;
    dispatcher().combine(request);
  }
  void dispatch_backward(int idx, bool with_weights) {
    dispatcher().dispatch_backward(backward_request(idx, with_weights));
  }
  void dispatch_backward_into_too_little() {
    DispatchBackwardRequest request = backward_request(0, false);
    --request.grad_tokens.num_rows;
    dispatcher().dispatch_backward(request);
  }
  void combine_backward(int idx) {
    (void)dispatcher().combine_backward({.handle = handle(idx), .grad_out = out_.view()});
  }
  void combine_backward_of_nothing() {
    CombineBackwardRequest request{.handle = first_, .grad_out = out_.view()};
    request.grad_out.data = nullptr;
    (void)dispatcher().combine_backward(request);
  }

 private:
  [[nodiscard]] std::int64_t num_rows() const { return first_.description().num_rows; }
  [[nodiscard]] CombineRequest combine_request(int idx) {
    return {.handle = handle(idx), .rows = rows_.view(), .out = out_.view()};
  }
  [[nodiscard]] DispatchBackwardRequest backward_request(int idx, bool with_weights) {
    return {.handle = handle(idx),
            .grad_rows = rows_.view(),
            .grad_weights = with_weights ? grad_weights_.data() : nullptr,
            .grad_tokens = out_.view(),
            .grad_probs = with_weights ? grad_probs_.data() : nullptr};
  }

  Scenario scenario_;
  Round round_;
  int rank_;
  RankInputs inputs_;
  Subject subject_;
  Handle first_;
  Handle second_;
  RowsBuffer rows_;
  RowsBuffer out_;
  std::vector<float> grad_weights_;
  std::vector<float> grad_probs_;
};

struct Seat {
  Seat(Group& own_group, const std::string& name)
      : group(own_group), dispatcher_name(name), desk(group, name), other(group, name) {}

  Group& group;
  std::string dispatcher_name;
  Desk desk;
  Desk other;  ///< a second dispatcher of the same group
};

struct CallKind {
  std::string name;
  std::string collective;  ///< kinds with the same text are one call, made in two ways
  std::function<void(Seat&)> call;
  ErrorCode refusal = ErrorCode::kOk;  ///< what this call is refused with on its own rank
};

void gather(Group& group, std::size_t num_bytes) {
  const std::vector<std::byte> own(num_bytes, static_cast<std::byte>(group.rank()));
  std::vector<std::byte> all(num_bytes * static_cast<std::size_t>(group.size()));
  group.all_gather(own.data(), num_bytes, all.data());
}

void make(Seat& seat, const std::string& name, std::int64_t hidden, std::int32_t top_k = 3) {
  DispatcherConfig config = pair_scenario(seat.group.size(), 1).config;
  config.hidden = hidden;
  config.top_k = top_k;
  (void)Dispatcher(seat.group, name, config);
}

std::vector<CallKind> call_kinds() {
  std::vector<CallKind> kinds;
  const auto add = [&kinds](const std::string& name, const std::string& collective, std::function<void(Seat&)> call,
                            ErrorCode refusal = ErrorCode::kOk) {
    kinds.push_back({name, collective, std::move(call), refusal});
  };
  add("Barrier", "barrier", [](Seat& s) { s.group.barrier(); });
  add("Gather8", "gather 8", [](Seat& s) { gather(s.group, 8); });
  add("Gather16", "gather 16", [](Seat& s) { gather(s.group, 16); });
  add("Gather100000", "gather 100000", [](Seat& s) { gather(s.group, 100'000); });
  add("MakeDirect", "make direct 32", [](Seat& s) { make(s, "direct", 32); });
  add("MakeAlltoall", "make alltoall 32", [](Seat& s) { make(s, "alltoall", 32); });
  add("MakeDirectHidden64", "make direct 64", [](Seat& s) { make(s, "direct", 64); });
  add(
      "MakeUnknown", "make ?", [](Seat& s) { make(s, "telepathy", 32); }, ErrorCode::kNotFound);
  add(
      "MakeInvalid", "make ?", [](Seat& s) { make(s, "direct", 32, 0); }, ErrorCode::kInvalidArgument);
  add("Prepare", "prepare", [](Seat& s) { (void)s.desk.prepare(); });
  add(
      "PrepareOtherTopK", "prepare", [](Seat& s) { s.desk.prepare_with_other_top_k(); }, ErrorCode::kInvalidArgument);
  add("Dispatch", "dispatch", [](Seat& s) { s.desk.dispatch(0); });
  add("DispatchInHalves", "dispatch", [](Seat& s) { s.desk.dispatch_in_halves(); });
  add(
      "DispatchOfNothing", "dispatch", [](Seat& s) { s.desk.dispatch_of_nothing(); }, ErrorCode::kInvalidArgument);
  add(
      "DispatchEmptyHandle", "dispatch",
      [](Seat& s) { (void)s.desk.dispatcher().dispatch(s.desk.dispatch_request(Handle())); },
      ErrorCode::kHandleMismatch);
  add(
      "DispatchForeignHandle", "dispatch",
      [](Seat& s) { (void)s.desk.dispatcher().dispatch(s.desk.dispatch_request(s.other.handle(0))); },
      ErrorCode::kHandleMismatch);
  add("Combine", "combine", [](Seat& s) { s.desk.combine(0); });
  add("CombineInHalves", "combine", [](Seat& s) { s.desk.combine_in_halves(); });
  add(
      "CombineIntoTooLittle", "combine", [](Seat& s) { s.desk.combine_into_too_little(); }, ErrorCode::kBufferTooSmall);
  add("DispatchBackward", "dispatch_backward", [](Seat& s) { s.desk.dispatch_backward(0, false); });
  add("DispatchBackwardOfWeights", "dispatch_backward weights", [](Seat& s) { s.desk.dispatch_backward(0, true); });
  add(
      "DispatchBackwardIntoTooLittle", "dispatch_backward", [](Seat& s) { s.desk.dispatch_backward_into_too_little(); },
      ErrorCode::kBufferTooSmall);
  add("CombineBackward", "combine_backward", [](Seat& s) { s.desk.combine_backward(0); });
  add(
      "CombineBackwardOfNothing", "combine_backward", [](Seat& s) { s.desk.combine_backward_of_nothing(); },
      ErrorCode::kInvalidArgument);
  add("DispatchOtherHandle", "dispatch h2", [](Seat& s) { s.desk.dispatch(1); });
  add("CombineOtherHandle", "combine h2", [](Seat& s) { s.desk.combine(1); });
  add("DispatchBackwardOtherHandle", "dispatch_backward h2", [](Seat& s) { s.desk.dispatch_backward(1, false); });
  add("CombineBackwardOtherHandle", "combine_backward h2", [](Seat& s) { s.desk.combine_backward(1); });
  add("OtherPrepare", "2: prepare", [](Seat& s) { (void)s.other.prepare(); });
  add(
      "OtherPrepareOtherTopK", "2: prepare", [](Seat& s) { s.other.prepare_with_other_top_k(); },
      ErrorCode::kInvalidArgument);
  add("OtherDispatch", "2: dispatch", [](Seat& s) { s.other.dispatch(0); });
  add("OtherCombine", "2: combine", [](Seat& s) { s.other.combine(0); });
  add("OtherDispatchBackward", "2: dispatch_backward", [](Seat& s) { s.other.dispatch_backward(0, false); });
  add("OtherCombineBackward", "2: combine_backward", [](Seat& s) { s.other.combine_backward(0); });
  // Last: where all do it, later steps go another way.
  add(
      "SetMaskOfNoRank", "set_mask", [](Seat& s) { s.group.set_mask({s.group.size()}); }, ErrorCode::kInvalidArgument);
  add("SetMask", "set_mask", [](Seat& s) {
    s.group.clear_mask();
    s.desk.renew();
    s.other.renew();
  });
  return kinds;
}

std::string code_text(const Outcome& outcome) {
  return outcome ? fmt::format("{} ({})", to_string(outcome->code()), outcome->what()) : "no error";
}

/// What every rank calls at once.
using Calls = std::vector<const CallKind*>;

/// What is wrong with the outcome of the call of `rank`.
std::string judge(const Calls& calls, int rank, const Outcome& outcome, Clock::duration took) {
  if (took > kAtOnce) return fmt::format("{} only after waiting", code_text(outcome));
  const CallKind& own = *calls[static_cast<std::size_t>(rank)];
  const auto refuses = [](const CallKind* kind) { return kind->refusal != ErrorCode::kOk; };
  const bool same =
      std::all_of(calls.begin(), calls.end(), [&](const CallKind* kind) { return kind->collective == own.collective; });
  const bool is_refused = std::any_of(calls.begin(), calls.end(), refuses);
  const ErrorCode code = outcome ? outcome->code() : ErrorCode::kOk;
  if (refuses(&own)) {
    return code == own.refusal ? std::string() : "its own refusal is not told, but " + code_text(outcome);
  }
  if (same && !is_refused) return outcome ? "the same call: " + code_text(outcome) : std::string();
  if (code == ErrorCode::kShapeMismatch && !same) return {};
  if (code != ErrorCode::kPeerRejected || !is_refused) return code_text(outcome);
  const int named = outcome->context().peer_rank;
  const bool is_rank = named >= 0 && static_cast<std::size_t>(named) < calls.size();
  return is_rank && refuses(calls[static_cast<std::size_t>(named)]) ? std::string()
                                                                    : "names the wrong rank: " + code_text(outcome);
}

/// Right data from the group and from both dispatchers, whatever was called before.
void check_goes_on(Seat& seat, std::size_t pair_idx) {
  Group& group = seat.group;
  const std::uint64_t own = pair_idx * 100 + static_cast<std::uint64_t>(group.rank());
  std::vector<std::uint64_t> all(static_cast<std::size_t>(group.size()));
  group.all_gather(&own, sizeof(own), all.data());
  for (std::size_t rank = 0; rank < all.size(); ++rank) {
    if (all[rank] == pair_idx * 100 + rank) continue;
    throw Error(ErrorCode::kVerificationFailed, fmt::format("all_gather: {} from rank {}", all[rank], rank));
  }
  group.barrier();
  for (Desk* desk : {&seat.desk, &seat.other}) {
    const Mismatch mismatch = round_trip(desk->subject(), Round(pair_scenario(group.size(), pair_idx + 10), 0));
    if (mismatch) throw Error(ErrorCode::kVerificationFailed, *mismatch);
  }
}

/// One rank makes its calls from `begin` on. Problems go to `report`. Returns the first that was not made: after one
/// that broke the group.
std::size_t play_calls(Group& group, const std::string& dispatcher, const std::vector<Calls>& all_calls,
                       std::size_t begin, const std::function<void(const std::string&)>& report) {
  Seat seat(group, dispatcher);
  for (std::size_t idx = begin; idx < all_calls.size(); ++idx) {
    const Calls& calls = all_calls[idx];
    const auto say = [&](const std::string& what) {
      std::string text;
      for (const CallKind* kind : calls) text += " " + kind->name;
      report(fmt::format("the ranks call{}; rank {}: {}", text, group.rank(), what));
    };
    const auto start = Clock::now();
    const Outcome outcome = outcome_of([&] { calls[static_cast<std::size_t>(group.rank())]->call(seat); });
    const std::string problem = judge(calls, group.rank(), outcome, Clock::now() - start);
    if (!problem.empty()) say(problem);
    const Outcome afterwards = outcome_of([&] { check_goes_on(seat, idx); });
    if (!afterwards) continue;
    say("afterwards " + code_text(afterwards));
    return idx + 1;
  }
  return all_calls.size();
}

/// Every kind in one rank, while the others call `usual`: in the last rank, and of three also in rank 0.
std::vector<Calls> pairs_with(const std::vector<CallKind>& kinds, const CallKind& usual, int num_ranks) {
  std::vector<Calls> result;
  for (const CallKind& odd : kinds) {
    const Calls all_usual(static_cast<std::size_t>(num_ranks), &usual);
    result.push_back(all_usual);
    result.back().back() = &odd;
    if (num_ranks == 2) continue;
    result.push_back(all_usual);
    result.back().front() = &odd;
  }
  return result;
}

/// `first` in rank 0, and any two other kinds in the others.
std::vector<Calls> triples_with(const std::vector<CallKind>& kinds, const CallKind& first) {
  std::vector<Calls> result;
  for (std::size_t idx = 0; idx < kinds.size(); ++idx) {
    result.push_back({&first, &kinds[idx], &kinds[mix(7, idx) % kinds.size()]});
  }
  return result;
}

/// Plays all pairs on groups of threads: a new one where a pair broke the last.
std::vector<std::string> play_on_threads(const std::string& dispatcher, const std::vector<Calls>& pairs,
                                         int num_ranks) {
  std::vector<std::string> problems;
  std::mutex mutex;
  std::size_t next = 0;
  for (int num_broken = 0; next < pairs.size() && num_broken < kMaxBroken; ++num_broken) {
    std::size_t reached = next;
    run_thread_ranks(num_ranks,
                     [&](Group& group) {
                       const std::size_t end =
                           play_calls(group, dispatcher, pairs, next, [&](const std::string& problem) {
                             const std::lock_guard lock(mutex);
                             problems.push_back(problem);
                           });
                       const std::lock_guard lock(mutex);
                       reached = std::max(reached, end);
                     },
                     {.timeout = kPairTimeout});
    next = reached;
  }
  if (next < pairs.size()) problems.push_back(fmt::format("{} pairs were not tried", pairs.size() - next));
  return problems;
}

std::string join_lines(const std::vector<std::string>& lines) {
  std::string text;
  for (const std::string& line : lines) text += "\n  " + line;
  return text;
}

std::string kind_name(std::size_t idx) { return call_kinds()[idx].name; }

class CallPairs : public ::testing::TestWithParam<std::tuple<std::string, std::size_t>> {
 protected:
  [[nodiscard]] const CallKind& usual() const { return kinds_[std::get<1>(GetParam())]; }

  void expect_all_told(const std::vector<Calls>& pairs, int num_ranks) const {
    const auto problems = play_on_threads(std::get<0>(GetParam()), pairs, num_ranks);
    EXPECT_TRUE(problems.empty()) << problems.size() << " problems in " << pairs.size()
                                  << " pairs:" << join_lines(problems);
  }

  const std::vector<CallKind> kinds_ = call_kinds();
};

TEST_P(CallPairs, OfTwoThreads) { expect_all_told(pairs_with(kinds_, usual(), 2), 2); }

TEST_P(CallPairs, OneOfThreeThreadsDiffers) {
  if (kThreadSanitizer) GTEST_SKIP() << "takes minutes, and two threads go through the same code";
  expect_all_told(pairs_with(kinds_, usual(), 3), 3);
}

TEST_P(CallPairs, AllOfThreeThreadsDiffer) {
  if (kThreadSanitizer) GTEST_SKIP() << "takes minutes, and two threads go through the same code";
  expect_all_told(triples_with(kinds_, usual()), 3);
}

INSTANTIATE_TEST_SUITE_P(All, CallPairs,
                         ::testing::Combine(::testing::ValuesIn(dispatcher_names()),
                                            ::testing::Range(std::size_t{0}, call_kinds().size())),
                         [](const auto& param_info) {
                           return std::get<0>(param_info.param) + "_" + kind_name(std::get<1>(param_info.param));
                         });

class CallPairsOfProcesses : public ::testing::TestWithParam<std::string> {};

// Between processes the same memory is compared, so one of every sort is enough.
TEST_P(CallPairsOfProcesses, AreToldToAll) {
  const std::vector<CallKind> all = call_kinds();
  std::vector<CallKind> kinds;
  for (const char* name : {"Barrier", "Gather8", "Gather16", "MakeDirect", "MakeUnknown", "Prepare", "PrepareOtherTopK",
                           "Dispatch", "Combine", "CombineIntoTooLittle", "DispatchBackwardOfWeights",
                           "DispatchOtherHandle", "OtherDispatch", "SetMaskOfNoRank", "SetMask"}) {
    kinds.push_back(*std::find_if(all.begin(), all.end(), [name](const CallKind& kind) { return kind.name == name; }));
  }
  std::vector<Calls> pairs;
  for (const CallKind& usual : kinds) {
    for (const Calls& calls : pairs_with(kinds, usual, 2)) pairs.push_back(calls);
  }
  const auto exits = run_process_ranks(2,
                                       [&](Group& group) {
                                         bool clean = true;
                                         const std::size_t end = play_calls(group, GetParam(), pairs, 0,
                                                                            [&clean](const std::string& problem) {
                                                                              clean = false;
                                                                              std::cerr << problem << std::endl;
                                                                            });
                                         return clean && end == pairs.size() ? 0 : 1;
                                       },
                                       {.timeout = kPairTimeout});
  for (std::size_t rank = 0; rank < exits.size(); ++rank) EXPECT_EQ(exits[rank], 0) << "exit of rank " << rank;
}

INSTANTIATE_TEST_SUITE_P(All, CallPairsOfProcesses, ::testing::ValuesIn(dispatcher_names()));

}  // namespace
}  // namespace epistle::testing
