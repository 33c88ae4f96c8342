#include "support/player.hpp"

#include <functional>
#include <memory>
#include <utility>
#include <variant>

namespace epistle::testing {

RankInputs::RankInputs(const Round& round, int rank)
    : round_(round),
      num_tokens_(round.table(rank).num_tokens),
      counted_(static_cast<std::int32_t>(round.counted_tokens(rank))),
      step_seed_(round.step_seed()),
      routing_(round.table(rank), round.scenario().id_type, strided()),
      tokens_({num_tokens_, round.config().hidden, round.config().dtype, strided()}, round.payload(rank)),
      scales_(num_tokens_, round.scale_row_bytes(), scale_format(round.config()), strided(), round.scales(rank)) {}

void place_for_round(Subject& subject, const Round& round, int idx) {
  if (idx < 1 || static_cast<std::size_t>(idx) > round.scenario().next_placements.size()) return;
  subject.dispatcher().set_placement(round.placement(), subject.stream());
}

Mismatch check_combine(Subject& subject, const Checker& checker, const RankInputs& inputs, const Received& received,
                       Round::ValueStream stream, bool stage) {
  const int rank = subject.group().rank();
  const std::vector<std::byte> values = checker.round().values(stream, rank, received.num_rows());
  RowsBuffer private_rows = inputs.output_rows(received.num_rows(), values);
  RowsBuffer out = inputs.sums();
  CombineRequest request{.received = received, .out = out.view()};
  if (stage) {
    request.rows = private_rows.view();
  } else {
    subject.write_outputs(received, values);
  }
  subject.combine(request);
  EPISTLE_RETURN_MISMATCH(out.check_gaps("combine"));
  return checker.check_sums(stream, rank, checker.round().config().apply_weights, out.compact(), "combine");
}

Mismatch check_backward(Subject& subject, const Checker& checker, const RankInputs& inputs, const Handle& handle,
                        Received& leased) {
  constexpr Round::ValueStream kGradients = 21;
  constexpr Round::ValueStream kSaved = 22;
  constexpr Round::ValueStream kRowGradients = 23;
  const int rank = subject.group().rank();
  const Round& round = checker.round();
  const std::int64_t num_rows = handle.description().num_rows;
  const std::int64_t num_tokens = round.table(rank).num_tokens;
  const std::size_t num_weights = static_cast<std::size_t>(num_rows) * checker.weights_per_row();
  const bool weighted = round.config().apply_weights;

  // Gradient of combine.
  RowsBuffer grad_out = inputs.output_rows(num_tokens, round.values(kGradients, rank, num_tokens));
  RowsBuffer saved = inputs.output_rows(num_rows, round.values(kSaved, rank, num_rows));
  std::vector<float> grad_weights(num_weights + 1, 42.0F);
  subject.poison_outputs_and_release(leased);
  CombineBackwardRequest backward{.handle = handle, .grad_out = grad_out.view()};
  if (weighted) {
    backward.saved_rows = saved.view();
    backward.grad_weights = grad_weights.data();
  }
  Received gradients = subject.combine_backward(backward);
  {
    const DescriptionCopy description = subject.read(handle);
    const ReceivedCopy rows = subject.read(gradients);
    EPISTLE_RETURN_MISMATCH(expect_equal(rows.data().rows.hidden, round.config().combine_hidden, "gradients: hidden"));
    EPISTLE_RETURN_MISMATCH(checker.check_row_gradients(rank, {.gradients = kGradients,
                                                               .saved = kSaved,
                                                               .description = description.get(),
                                                               .rows = rows.data().row_data(),
                                                               .grad_weights = grad_weights.data()}));
  }
  gradients.release();

  // Gradient of dispatch: an unweighted combine, and each weight's gradient back at its place in the top-k.
  for (std::size_t idx = 0; idx < grad_weights.size(); ++idx) grad_weights[idx] = marked_gradient(rank, idx);
  RowsBuffer grad_rows = inputs.output_rows(num_rows, round.values(kRowGradients, rank, num_rows));
  RowsBuffer grad_tokens = inputs.sums();
  std::vector<float> grad_probs(static_cast<std::size_t>(num_tokens * round.config().top_k) + 1, 42.0F);
  subject.dispatch_backward({.handle = handle,
                             .grad_rows = grad_rows.view(),
                             .grad_weights = grad_weights.data(),
                             .grad_tokens = grad_tokens.view(),
                             .grad_probs = grad_probs.data()});
  EPISTLE_RETURN_MISMATCH(checker.check_sums(kRowGradients, rank, false, grad_tokens.compact(), "dispatch_backward"));
  EPISTLE_RETURN_MISMATCH(grad_tokens.check_gaps("dispatch_backward"));
  return checker.check_weight_gradients(rank, grad_probs.data());
}

namespace {

/// Plays one rank's part in a scenario.
class Player {
 public:
  Player(Subject& subject, const Scenario& scenario)
      : subject_(subject),
        scenario_(scenario),
        expert_tokens_(subject.dispatcher().expert_tokens()),
        lost_tokens_(subject.dispatcher().lost_tokens()) {}

  /// In every round: prepare; dispatch and combine, repeated with the same handle; both in one call; both backward
  /// passes. Then once more with the first handle. With several buffers the rows of a round are held, and stay as they
  /// are, through the next.
  [[nodiscard]] Mismatch run() {
    for (int idx = 0; idx < scenario_.num_rounds; ++idx) {
      const Round round(scenario_, idx);
      place_for_round(subject_, round, idx);
      EPISTLE_RETURN_MISMATCH(play_round(round));
    }
    EPISTLE_RETURN_MISMATCH(let_go());
    const Round first(scenario_, 0);
    const Checker checker(first);
    RankInputs inputs(first, rank());
    const Received received = subject_.dispatch(inputs.dispatch(handles_.front()));
    const ReceivedCopy copy = subject_.read(received);
    return checker.check_received(rank(), copy.data(), "dispatch with an older handle");
  }

 private:
  [[nodiscard]] int rank() const { return subject_.group().rank(); }

  [[nodiscard]] Mismatch play_round(const Round& round) {
    const Checker checker(round);
    RankInputs inputs(round, rank());
    handles_.push_back(subject_.prepare(inputs.prepare()));
    const Handle& handle = handles_.back();
    EPISTLE_RETURN_MISMATCH(checker.check_description(rank(), subject_.read(handle).get()));
    EPISTLE_RETURN_MISMATCH(check_stats(checker, handle));
    EPISTLE_RETURN_MISMATCH(
        expect_equal(subject_.dispatcher().resident_bytes(), subject_.dispatcher().shared_bytes(), "resident bytes"));

    // The first dispatch tells where the rows will be; the others have to write them.
    Received received = subject_.dispatch(inputs.dispatch(handle));
    for (int repeat = 0; repeat < kNumRepeats; ++repeat) {
      subject_.poison_and_release(received);
      received = subject_.dispatch(inputs.dispatch(handle));
      EPISTLE_RETURN_MISMATCH(checker.check_received(rank(), subject_.read(received).data(), "dispatch"));
      if (!round.combines()) continue;
      const auto stream = 10 + static_cast<Round::ValueStream>(repeat);
      EPISTLE_RETURN_MISMATCH(check_combine(subject_, checker, inputs, received, stream, scenario_.stage_combine));
    }
    EPISTLE_RETURN_MISMATCH(play_in_one_call(checker, inputs, received));
    if (round.combines()) {
      EPISTLE_RETURN_MISMATCH(check_backward(subject_, checker, inputs, received.handle(), received));
    }
    received.release();
    EPISTLE_RETURN_MISMATCH(check_expert_tokens(checker));
    return hold(inputs, handle);
  }

  /// Every round prepares its routing twice.
  [[nodiscard]] Mismatch check_expert_tokens(const Checker& checker) {
    const std::vector<std::int32_t>& ids = checker.table(rank()).expert_ids;
    for (std::size_t entry = 0; entry < ids.size(); ++entry) {
      if (ids[entry] == kNoExpert) continue;
      (is_lost(checker, entry) ? lost_tokens_ : expert_tokens_)[static_cast<std::size_t>(ids[entry])] += 2;
    }
    EPISTLE_RETURN_MISMATCH(check_counters(subject_.dispatcher().expert_tokens(), expert_tokens_, "expert_tokens"));
    return check_counters(subject_.dispatcher().lost_tokens(), lost_tokens_, "lost_tokens");
  }

  /// The expert of the entry is on a rank that is masked out.
  [[nodiscard]] bool is_lost(const Checker& checker, std::size_t entry) const {
    return checker.layout(rank()).slots[entry] == reference::kNowhere;
  }

  [[nodiscard]] static Mismatch check_counters(const std::vector<std::int64_t>& counted,
                                               const std::vector<std::int64_t>& expected, const std::string& what) {
    EPISTLE_RETURN_MISMATCH(expect_equal(counted.size(), expected.size(), "experts of " + what));
    for (std::size_t expert = 0; expert < counted.size(); ++expert) {
      EPISTLE_RETURN_MISMATCH(
          expect_equal(counted[expert], expected[expert], fmt::format("{} of expert {}", what, expert)));
    }
    return std::nullopt;
  }

  /// Leaves the new lease in `received`.
  [[nodiscard]] Mismatch play_in_one_call(const Checker& checker, RankInputs& inputs, Received& received) {
    subject_.poison_and_release(received);
    received = subject_.dispatch(inputs.prepare_and_dispatch());
    const ReceivedCopy copy = subject_.read(received);
    EPISTLE_RETURN_MISMATCH(checker.check_description(rank(), copy.data().description));
    EPISTLE_RETURN_MISMATCH(checker.check_received(rank(), copy.data(), "dispatch with ids"));
    if (!checker.round().combines()) return std::nullopt;
    return check_combine(subject_, checker, inputs, received, kOneCallStream, !scenario_.stage_combine);
  }

  [[nodiscard]] Mismatch check_stats(const Checker& checker, const Handle& handle) const {
    const RoutingStats& stats = handle.wait_stats();
    EPISTLE_RETURN_MISMATCH(expect_equal(stats.num_tokens, checker.round().counted_tokens(rank()), "num_tokens"));
    std::int64_t num_dropped = 0;
    for (const std::int32_t dropped : checker.layout(rank()).expert_dropped) num_dropped += dropped;
    EPISTLE_RETURN_MISMATCH(expect_equal(stats.dropped_here, num_dropped, "dropped_here"));
    std::int64_t num_lost = 0;
    const std::vector<std::int32_t>& ids = checker.table(rank()).expert_ids;
    for (std::size_t entry = 0; entry < ids.size(); ++entry) {
      if (ids[entry] != kNoExpert && is_lost(checker, entry)) ++num_lost;
    }
    EPISTLE_RETURN_MISMATCH(expect_equal(stats.lost_by_this_rank, num_lost, "lost_by_this_rank"));
    EPISTLE_RETURN_MISMATCH(check_kept(checker, handle));
    const RoutingStats* const known = handle.try_stats();
    if (known == nullptr) return "try_stats does not know what wait_stats has told";
    return expect_equal(known->dropped_here, num_dropped, "dropped_here of try_stats");
  }

  /// What a handle tells of its routing besides: rows of the experts here, on the host, and the ids that it keeps.
  [[nodiscard]] Mismatch check_kept(const Checker& checker, const Handle& handle) const {
    const std::vector<std::int32_t> counts = handle.read_expert_counts();
    const DescriptionCopy description = subject_.read(handle);
    const std::int32_t* const described = description.get().expert_counts;
    if (counts != std::vector<std::int32_t>(described, described + description.get().num_local_experts)) {
      return "read_expert_counts does not tell what expert_counts has";
    }
    const IdsView ids = handle.routed_ids();
    if (ids.data == nullptr || subject_.config().places_experts()) return std::nullopt;
    const std::vector<std::int32_t>& given = checker.table(rank()).expert_ids;
    std::vector<std::int32_t> kept(static_cast<std::size_t>(handle.wait_stats().num_tokens * ids.top_k));
    subject_.memory().read(kept.data(), ids.data, static_cast<std::int64_t>(kept.size() * sizeof(kept.front())));
    for (std::size_t entry = 0; entry < kept.size(); ++entry) {
      const std::int32_t expected = is_lost(checker, entry) ? kNoExpert : given[entry];
      EPISTLE_RETURN_MISMATCH(expect_equal(kept[entry], expected, fmt::format("routed_ids, entry {}", entry)));
    }
    return std::nullopt;
  }

  /// Keeps a lease with rows of this round, where the dispatcher has one to spare.
  [[nodiscard]] Mismatch hold(RankInputs& inputs, const Handle& handle) {
    EPISTLE_RETURN_MISMATCH(let_go());
    if (subject_.config().num_buffers < 2) return std::nullopt;
    held_ = subject_.dispatch(inputs.dispatch(handle));
    held_copy_ = std::make_unique<ReceivedCopy>(subject_.memory(), data_of(held_), subject_.config().top_k);
    return std::nullopt;
  }
  /// What is held must be as it was.
  [[nodiscard]] Mismatch let_go() {
    if (!held_.valid()) return std::nullopt;
    const ReceivedCopy now = subject_.read(held_);
    held_.release();
    if (now.row_bytes() != held_copy_->row_bytes()) return "rows have changed while their lease was alive";
    if (now.scale_bytes() != held_copy_->scale_bytes()) return "scales have changed while their lease was alive";
    return std::nullopt;
  }

  static constexpr int kNumRepeats = 2;
  static constexpr Round::ValueStream kOneCallStream = 15;

  Subject& subject_;
  const Scenario& scenario_;
  std::vector<Handle> handles_;
  std::vector<std::int64_t> expert_tokens_;
  std::vector<std::int64_t> lost_tokens_;
  Received held_;
  std::unique_ptr<ReceivedCopy> held_copy_;
};

/// The options of a scenario: its workers, on the host.
SubjectOptions with_workers(SubjectOptions options, const Scenario& scenario) {
  if (auto* const host = std::get_if<HostOptions>(&options.device)) host->num_workers = scenario.num_workers;
  return options;
}

}  // namespace

Mismatch play_on(Subject& subject, const Scenario& scenario) { return Player(subject, scenario).run(); }

Mismatch play_rank(Group& group, const std::string& dispatcher, const Scenario& scenario,
                   const SubjectOptions& options) {
  Subject subject(group, dispatcher, scenario.config, with_workers(options, scenario));
  return play_on(subject, scenario);
}

std::vector<Mismatch> play_over_threads(const std::string& dispatcher, const Scenario& scenario,
                                        const SubjectOptions& options) {
  std::vector<Mismatch> mismatches(scenario.tokens_per_rank.size());
  const auto play = [&](Group& group) {
    mismatches[static_cast<std::size_t>(group.rank())] = play_rank(group, dispatcher, scenario, options);
  };
  run_thread_ranks(scenario.num_ranks(), play, {.domain_size = scenario.domain_size});
  return mismatches;
}

}  // namespace epistle::testing
