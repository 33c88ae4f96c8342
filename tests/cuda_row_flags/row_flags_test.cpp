// Flags of rows: they rise when rows are complete and not before, for every source and expert, at every replay of a
// graph; combine takes outputs as they are marked; and waits end.
#include "epistle/device/row_flags.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <cuda_runtime_api.h>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "epistle/cuda.hpp"
#include "epistle/dispatcher.hpp"
#include "epistle/group.hpp"

#include "cuda_row_flags/consumer.hpp"
#include "support/cuda_devices.hpp"
#include "support/device_arena.hpp"
#include "support/scenario.hpp"

namespace epistle::testing {
namespace {

constexpr int kCommSms = 8;
constexpr int kConsumerBlocks = 24;
constexpr std::uint64_t kPatienceNs = 10'000'000'000;
constexpr std::byte kPoison{0xa5};
constexpr std::byte kOtherPoison{0x5a};

struct Case {
  std::string name;
  DispatcherConfig config;
  std::vector<std::int64_t> tokens;  ///< by rank
  int columns_per_part = 0;
  bool odd_experts_only = false;  ///< half of the experts get no row
};

DispatcherConfig base_config() {
  DispatcherConfig config;
  config.hidden = 1024;
  config.num_experts = 16;
  config.top_k = 4;
  config.max_tokens = 64;
  config.layout = ExpertBlocks{.rows_per_expert = 2 * 64};
  config.sizing = Capacity{};
  return config;
}

std::vector<Case> cases() {
  std::vector<Case> all;
  const auto add = [&](const std::string& name, const std::function<void(Case&)>& change) {
    Case added{.name = name, .config = base_config(), .tokens = {64, 64}};
    change(added);
    if (auto* blocks = std::get_if<ExpertBlocks>(&added.config.layout)) {
      blocks->rows_per_expert = added.config.max_tokens * static_cast<std::int64_t>(added.tokens.size());
    }
    all.push_back(std::move(added));
  };
  add("Blocks", [](Case&) {});
  add("BlocksFp8", [](Case& c) { c.config.wire = Fp8Blocks{}; });
  add("BlocksFp8Ue8m0", [](Case& c) { c.config.wire = Fp8Blocks{.scales = ScaleFormat::kUe8m0}; });
  add("BlocksHalfOfTheExperts", [](Case& c) { c.odd_experts_only = true; });
  add("BlocksNoTokensOnOneRank", [](Case& c) { c.tokens = {0, 64}; });
  add("BlocksNoTokensAtAll", [](Case& c) { c.tokens = {0, 0}; });
  add("BlocksByColumns", [](Case& c) { c.columns_per_part = 300; });
  add("BlocksUnweighted", [](Case& c) { c.config.apply_weights = false; });
  add("BlocksDeepEpV2", [](Case& c) { c.config.order = SumOrder::kDeepEpV2; });
  add("BlocksOddHidden", [](Case& c) { c.config.hidden = 1000; });  // 125 words of 16 bytes
  add("BlocksFourRanks", [](Case& c) { c.tokens = {64, 1, 0, 40}; });
  add("BlocksManyTokens", [](Case& c) {
    c.config.max_tokens = 512;
    c.tokens = {512, 300};
  });
  add("MajorAligned", [](Case& c) {
    c.config.layout = ExpertMajor{.alignment = 16};
    c.config.sizing = Capacity{.rows_per_rank = 2 * 64 * 4 + 8 * 16};
  });
  return all;
}

/// One rank with a dispatcher that raises flags and one that does not, which says what is right.
class FlagRank {
 public:
  FlagRank(Group& group, const Case& test_case)
      : group_(group), case_(test_case), num_tokens_(test_case.tokens[static_cast<std::size_t>(group.rank())]) {
    const CudaOptions plain_options{.num_sms = kCommSms};
    CudaOptions options = plain_options;
    options.row_flags = true;
    plain_.emplace(group, "low_latency", test_case.config, plain_options);
    flagged_.emplace(group, "low_latency", test_case.config, options);
    arena_ = std::make_unique<DeviceArena>(flagged_->device_ordinal(), std::int64_t{256} << 20);
    device_ = flagged_->device_ordinal();
    other_ = StreamPool::instance().take(device_);
    check_cuda(cudaEventCreateWithFlags(&sent_, cudaEventDisableTiming), "cudaEventCreate");
    check_cuda(cudaEventCreateWithFlags(&consumed_, cudaEventDisableTiming), "cudaEventCreate");
    const std::int64_t entries = std::max<std::int64_t>(num_tokens_, 1) * config().top_k;
    ids_ = reinterpret_cast<std::int32_t*>(arena_->take(entries * 4));
    weights_ = reinterpret_cast<float*>(arena_->take(entries * 4));
    tokens_ = rows_of(config().hidden);
    out_ = rows_of(config().hidden);
    // Not at the first launch: loading waits for running kernels, and those of the other rank may wait for this one.
    check_cuda(load_consumer_kernels(), "loading the kernels of the consumer");
    group_.barrier();
  }
  ~FlagRank() {
    (void)cudaStreamSynchronize(other_);
    (void)cudaStreamSynchronize(stream());
    try {
      group_.barrier();
    } catch (const Error&) {
      // The group is broken: nobody will call anything any more.
    }
    flagged_.reset();
    plain_.reset();
    (void)cudaEventDestroy(sent_);
    (void)cudaEventDestroy(consumed_);
    StreamPool::instance().give(device_, other_);
  }
  FlagRank(const FlagRank&) = delete;
  FlagRank& operator=(const FlagRank&) = delete;

  [[nodiscard]] const DispatcherConfig& config() const { return case_.config; }
  [[nodiscard]] cudaStream_t stream() const { return arena_->stream(); }
  [[nodiscard]] cudaStream_t other() const { return other_; }
  [[nodiscard]] DeviceArena& arena() { return *arena_; }
  [[nodiscard]] Dispatcher& flagged() { return *flagged_; }
  [[nodiscard]] const Rows& out() const { return out_; }

  /// Other inputs for every round.
  void fill(int round) {
    const std::uint64_t key = mix(41, static_cast<std::uint64_t>(100 * round + group_.rank()));
    std::vector<std::int32_t> ids;
    std::vector<float> weights;
    for (std::int64_t token = 0; token < num_tokens_; ++token) {
      const std::uint64_t bits = mix(key, static_cast<std::uint64_t>(token));
      // Distinct experts: a start, and an odd step from one to the next.
      const auto experts = static_cast<std::uint64_t>(config().num_experts);
      for (int k = 0; k < config().top_k; ++k) {
        std::uint64_t expert = (bits + static_cast<std::uint64_t>(k) * ((bits >> 20) | 1U)) % experts;
        if (case_.odd_experts_only) expert = (expert | 1U) % experts;
        const bool repeated = std::find(ids.end() - k, ids.end(), static_cast<std::int32_t>(expert)) != ids.end();
        ids.push_back(repeated ? kNoExpert : static_cast<std::int32_t>(expert));
        weights.push_back(static_cast<float>(1 + (bits >> (k + 8)) % 7) / 8.0F);
      }
    }
    arena_->upload(ids_, ids.data(), static_cast<std::int64_t>(ids.size()) * 4);
    arena_->upload(weights_, weights.data(), static_cast<std::int64_t>(weights.size()) * 4);
    std::vector<std::uint16_t> values(static_cast<std::size_t>(num_tokens_ * config().hidden));
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<std::uint16_t>(0x3f00 + mix(key, i) % 256);
    arena_->upload(tokens_.data, values.data(), static_cast<std::int64_t>(values.size()) * 2);
  }

  [[nodiscard]] DispatchRequest request() const {
    return {.expert_ids = {ids_, num_tokens_, config().top_k}, .weights = weights_, .tokens = tokens_};
  }

  /// Room for what a consumer finds, by the shape of what is received.
  [[nodiscard]] ConsumerArgs consumer(const Received& received, const device::RowFlags& flags) {
    const std::int64_t rows = received.num_rows();
    const ScalesView scales = received.scales();
    ConsumerArgs args;
    args.flags = flags;
    args.rows = static_cast<const std::byte*>(received.rows().data);
    args.row_bytes = received.rows().hidden * dtype_bytes(received.rows().dtype);
    args.scales = static_cast<const std::byte*>(scales.data);
    args.scale_bytes = scales.data == nullptr ? 0 : scales.row_stride * scale_element_bytes(scales.format);
    args.src_token = received.description().src_token;
    args.outputs = static_cast<std::byte*>(received.expert_outputs().data);
    args.output_hidden = received.expert_outputs().hidden;
    args.timeout_ns = kPatienceNs;
    args.columns_per_part = case_.columns_per_part;
    const std::int64_t num_flags = std::int64_t{flags.num_ranks} * flags.num_local_experts;
    args.counters = reinterpret_cast<std::uint32_t*>(arena_->take(num_flags * 4));
    arena_->fill(args.counters, std::byte{0}, num_flags * 4);
    args.seen = reinterpret_cast<device::RowArrival*>(arena_->take(num_flags * 16));
    args.seen_rows = arena_->take(rows * args.row_bytes);
    args.seen_scales = arena_->take(rows * args.scale_bytes);
    args.seen_tokens = reinterpret_cast<std::int32_t*>(arena_->take(rows * 4));
    args.findings = reinterpret_cast<ConsumerFindings*>(arena_->take(sizeof(ConsumerFindings)));
    return args;
  }

  /// On the stream: what a kernel would see that is too early.
  void poison(const ConsumerArgs& args, std::byte with) const {
    const auto put = [&](const void* memory, std::int64_t bytes) {
      if (memory == nullptr || bytes == 0) return;
      check_cuda(cudaMemsetAsync(const_cast<void*>(memory), std::to_integer<int>(with), static_cast<std::size_t>(bytes),
                                 stream()),
                 "cudaMemsetAsync");
    };
    const std::int64_t rows = args.flags.num_rows;
    put(args.rows, rows * args.row_bytes);
    put(args.scales, rows * args.scale_bytes);
    put(args.outputs, rows * args.output_hidden * 2);
    put(args.seen_rows, rows * args.row_bytes);
    put(args.seen_scales, rows * args.scale_bytes);
    put(args.seen_tokens, rows * 4);
    put(args.seen, std::int64_t{args.flags.num_ranks} * args.flags.num_local_experts * 16);
    put(out_.data, num_tokens_ * config().hidden * 2);
    check_cuda(cudaMemsetAsync(args.findings, 0, sizeof(ConsumerFindings), stream()), "cudaMemsetAsync");
  }

  /// The calls of a step in which dispatch, consumer and combine run beside each other.
  [[nodiscard]] Received start(const ConsumerArgs* known, ConsumerArgs& args, bool combines = true) {
    Pending pending = flagged_->dispatch_send(request(), stream());
    Received received = pending.received();
    if (known != nullptr) {
      args = *known;
      args.flags = received.row_flags();
    } else {
      args = consumer(received, received.row_flags());
    }
    check_cuda(cudaEventRecord(sent_, stream()), "cudaEventRecord");
    check_cuda(cudaStreamWaitEvent(other_, sent_, 0), "cudaStreamWaitEvent");
    received = flagged_->dispatch_receive(std::move(pending), stream());
    check_cuda(launch_consumer(args, kConsumerBlocks, other_), "launching the consumer");
    check_cuda(cudaEventRecord(consumed_, other_), "cudaEventRecord");
    if (combines) flagged_->combine({.received = received, .out = out_, .as_rows_finish = true}, stream());
    check_cuda(cudaStreamWaitEvent(stream(), consumed_, 0), "cudaStreamWaitEvent");
    return received;
  }

  /// What was seen against a round trip without flags.
  void check(const ConsumerArgs& args) {
    SCOPED_TRACE(fmt::format("rank {}", group_.rank()));
    const auto num_flags = static_cast<std::size_t>(args.flags.num_ranks * args.flags.num_local_experts);
    const auto findings = arena_->read(args.findings, 1).front();
    EXPECT_EQ(findings.ends[1], 0U) << "deadlines passed";
    EXPECT_EQ(findings.ends[2], 0U) << "waits that saw a failure";
    EXPECT_EQ(findings.ends[0] % num_flags, 0U);
    EXPECT_GE(findings.ends[0], num_flags);
    const auto seen = arena_->read(args.seen, static_cast<std::int64_t>(num_flags));
    const auto seen_rows = arena_->read(args.seen_rows, args.flags.num_rows * args.row_bytes);
    const auto seen_scales = arena_->read(args.seen_scales, args.flags.num_rows * args.scale_bytes);
    const auto seen_tokens = arena_->read(args.seen_tokens, args.flags.num_rows);
    const auto out = arena_->read(static_cast<const std::uint16_t*>(out_.data), num_tokens_ * config().hidden);

    const Received right = plain_->dispatch(request(), stream());
    ConsumerArgs right_args = args;
    right_args.outputs = static_cast<std::byte*>(right.expert_outputs().data);
    right_args.src_token = right.description().src_token;
    check_cuda(launch_outputs(right_args, stream()), "launching outputs");
    plain_->combine({.received = right, .out = out_}, stream());
    plain_->wait();
    const auto right_out = arena_->read(static_cast<const std::uint16_t*>(out_.data), num_tokens_ * config().hidden);
    const RowDescription& description = right.description();
    const auto tokens = arena_->read(description.src_token, args.flags.num_rows);
    const auto ranks = arena_->read(description.src_rank, args.flags.num_rows);
    const auto experts = arena_->read(description.row_expert, args.flags.num_rows);
    const auto rows =
        arena_->read(static_cast<const std::byte*>(right.rows().data), args.flags.num_rows * args.row_bytes);
    const auto scales =
        arena_->read(static_cast<const std::byte*>(right.scales().data), args.flags.num_rows * args.scale_bytes);

    std::vector<std::int32_t> counts(num_flags, 0);
    int wrong = 0;
    for (std::int64_t row = 0; row < args.flags.num_rows; ++row) {
      const auto at = static_cast<std::size_t>(row);
      if (tokens[at] < 0) continue;
      const auto flag = static_cast<std::size_t>(ranks[at] * args.flags.num_local_experts + experts[at]);
      const bool in = row >= seen[flag].begin && row < seen[flag].begin + seen[flag].count;
      counts[flag]++;
      const auto row_bytes = static_cast<std::size_t>(args.row_bytes);
      const auto scale_bytes = static_cast<std::size_t>(args.scale_bytes);
      const bool same =
          in && seen_tokens[at] == tokens[at] &&
          std::memcmp(seen_rows.data() + at * row_bytes, rows.data() + at * row_bytes, row_bytes) == 0 &&
          std::memcmp(seen_scales.data() + at * scale_bytes, scales.data() + at * scale_bytes, scale_bytes) == 0;
      if (!same && wrong++ < 3) ADD_FAILURE() << "row " << row << " was not complete when its flag rose, in " << in;
    }
    for (std::size_t flag = 0; flag < num_flags; ++flag) EXPECT_EQ(seen[flag].count, counts[flag]) << "flag " << flag;
    EXPECT_EQ(out, right_out) << "sums";
  }

 private:
  [[nodiscard]] Rows rows_of(std::int64_t hidden) {
    return {.data = arena_->take(std::max<std::int64_t>(num_tokens_, 1) * hidden * 2),
            .num_rows = num_tokens_,
            .hidden = hidden,
            .dtype = DType::kBf16};
  }

  Group& group_;
  const Case& case_;
  std::int64_t num_tokens_;
  std::optional<Dispatcher> plain_;
  std::optional<Dispatcher> flagged_;
  std::unique_ptr<DeviceArena> arena_;
  int device_ = 0;
  cudaStream_t other_ = nullptr;
  cudaEvent_t sent_ = nullptr;
  cudaEvent_t consumed_ = nullptr;
  std::int32_t* ids_ = nullptr;
  float* weights_ = nullptr;
  Rows tokens_;
  Rows out_;
};

class RowFlags : public OnGpu<::testing::TestWithParam<Case>> {};

TEST_P(RowFlags, RiseWhenRowsAreCompleteAndCombineTakesWhatIsMarked) {
  const Case& test_case = GetParam();
  run_thread_ranks(static_cast<int>(test_case.tokens.size()),
                   [&](Group& group) {
                     FlagRank rank(group, test_case);
                     std::optional<ConsumerArgs> known;
                     for (int round = 0; round < 4; ++round) {
                       rank.fill(round);
                       if (known) rank.poison(*known, round % 2 != 0 ? kPoison : kOtherPoison);
                       rank.arena().synchronize();
                       group.barrier();
                       ConsumerArgs args;
                       const Received received = rank.start(known ? &*known : nullptr, args);
                       rank.flagged().wait();
                       rank.arena().synchronize();
                       // The first round only says where everything lies.
                       if (known) rank.check(args);
                       known = args;
                       group.barrier();
                     }
                   },
                   {.timeout = std::chrono::milliseconds(20'000)});
}

TEST_P(RowFlags, HoldForReplaysOfAGraph) {
  const Case& test_case = GetParam();
  run_thread_ranks(static_cast<int>(test_case.tokens.size()),
                   [&](Group& group) {
                     FlagRank rank(group, test_case);
                     ConsumerArgs args;
                     rank.fill(0);
                     group.barrier();
                     static_cast<void>(rank.start(nullptr, args));
                     rank.flagged().wait();
                     rank.arena().synchronize();
                     group.barrier();
                     const ConsumerArgs known = args;
                     check_cuda(cudaStreamBeginCapture(rank.stream(), cudaStreamCaptureModeThreadLocal),
                                "cudaStreamBeginCapture");
                     const Received received = rank.start(&known, args);
                     cudaGraph_t graph = nullptr;
                     check_cuda(cudaStreamEndCapture(rank.stream(), &graph), "cudaStreamEndCapture");
                     cudaGraphExec_t exec = nullptr;
                     check_cuda(cudaGraphInstantiate(&exec, graph, 0), "cudaGraphInstantiate");
                     for (int replay = 1; replay <= 4; ++replay) {
                       rank.fill(replay);
                       rank.poison(args, replay % 2 != 0 ? kPoison : kOtherPoison);
                       rank.arena().synchronize();
                       group.barrier();
                       check_cuda(cudaGraphLaunch(exec, rank.stream()), "cudaGraphLaunch");
                       rank.flagged().wait();
                       rank.arena().synchronize();
                       rank.check(args);
                       group.barrier();
                     }
                     (void)cudaGraphExecDestroy(exec);
                     (void)cudaGraphDestroy(graph);
                   },
                   {.timeout = std::chrono::milliseconds(20'000)});
}

INSTANTIATE_TEST_SUITE_P(All, RowFlags, ::testing::ValuesIn(cases()),
                         [](const auto& param_info) { return param_info.param.name; });

class RowFlagWaits : public OnGpu<::testing::Test> {};

Case plain_case() { return {.name = "Blocks", .config = base_config(), .tokens = {64, 64}}; }

TEST_F(RowFlagWaits, EndAtTheirDeadlineWhileAnotherRankIsLateAndTheCallGoesOn) {
  const Case test_case = plain_case();
  run_thread_ranks(2, [&](Group& group) {
    FlagRank rank(group, test_case);
    rank.fill(0);
    group.barrier();
    ConsumerArgs args;
    if (group.rank() == 1) group.barrier();  // until the other one has seen its deadlines pass
    Pending pending = rank.flagged().dispatch_send(rank.request(), rank.stream());
    Received received = pending.received();
    args = rank.consumer(received, received.row_flags());
    rank.arena().fill(args.findings, std::byte{0}, sizeof(ConsumerFindings));
    received = rank.flagged().dispatch_receive(std::move(pending), rank.stream());
    if (group.rank() == 0) {
      args.timeout_ns = 20'000'000;
      check_cuda(launch_consumer(args, kConsumerBlocks, rank.other()), "launching the consumer");
      check_cuda(cudaStreamSynchronize(rank.other()), "waiting for the consumer");
      group.barrier();
    }
    rank.flagged().wait();
    if (group.rank() == 0) {
      const auto findings = rank.arena().read(args.findings, 1).front();
      EXPECT_EQ(findings.ends[0], 0U);
      EXPECT_EQ(findings.ends[1], 16U) << "2 sources of 8 experts";
    }
    group.barrier();
  });
}

TEST_F(RowFlagWaits, EndWhenTheDispatcherHasGivenUp) {
  const Case test_case = plain_case();
  EXPECT_THROW(run_thread_ranks(2,
                                [&](Group& group) {
                                  FlagRank rank(group, test_case);
                                  rank.fill(0);
                                  group.barrier();
                                  if (group.rank() == 1) {
                                    std::this_thread::sleep_for(std::chrono::seconds(2));
                                    group.barrier();
                                    return;
                                  }
                                  Pending pending = rank.flagged().dispatch_send(rank.request(), rank.stream());
                                  Received received = pending.received();
                                  const ConsumerArgs args = rank.consumer(received, received.row_flags());
                                  rank.arena().fill(args.findings, std::byte{0}, sizeof(ConsumerFindings));
                                  received = rank.flagged().dispatch_receive(std::move(pending), rank.stream());
                                  check_cuda(launch_consumer(args, kConsumerBlocks, rank.other()),
                                             "launching the consumer");
                                  check_cuda(cudaStreamSynchronize(rank.other()), "waiting for the consumer");
                                  EXPECT_EQ(rank.arena().read(args.findings, 1).front().ends[2], 16U);
                                  rank.flagged().wait();
                                },
                                {.timeout = std::chrono::milliseconds(500)}),
               Error);
}

TEST_F(RowFlagWaits, OfCombineEndWithAnErrorWhereNobodyMarksARow) {
  const Case test_case = plain_case();
  std::atomic<int> num_told{0};
  try {
    run_thread_ranks(2,
                     [&](Group& group) {
                       FlagRank rank(group, test_case);
                       rank.fill(0);
                       group.barrier();
                       const Received received = rank.flagged().dispatch(rank.request(), rank.stream());
                       rank.flagged().combine({.received = received, .out = rank.out(), .as_rows_finish = true},
                                              rank.stream());
                       try {
                         rank.flagged().wait();
                         ADD_FAILURE() << "combine ended without rows";
                       } catch (const Error& error) {
                         if (std::string(error.what()).find("mark_rows_done") != std::string::npos) ++num_told;
                         throw;
                       }
                     },
                     {.timeout = std::chrono::milliseconds(500)});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kTimeout) << error.what();
  }
  EXPECT_GE(num_told, 1);
}

TEST_F(RowFlagWaits, AreRefusedWhereThereAreNoFlags) {
  run_thread_ranks(2, [&](Group& group) {
    const auto code_of = [&](const std::string& dispatcher, const DispatcherConfig& config) {
      try {
        const Dispatcher made(group, dispatcher, config, CudaOptions{.row_flags = true});
        return ErrorCode::kSystem;
      } catch (const Error& error) {
        return error.code();
      }
    };
    EXPECT_EQ(code_of("direct", base_config()), ErrorCode::kUnsupported);
    DispatcherConfig token_rows = base_config();
    token_rows.layout = TokenMajor{};
    token_rows.sizing = Capacity{.rows_per_rank = 128};
    EXPECT_EQ(code_of("low_latency", token_rows), ErrorCode::kUnsupported);
    const Case test_case = plain_case();
    FlagRank rank(group, test_case);
    rank.fill(0);
    group.barrier();
    const Handle handle = rank.flagged().prepare(
        {.expert_ids = rank.request().expert_ids, .weights = rank.request().weights}, rank.stream());
    const Received received =
        rank.flagged().dispatch({.handle = handle, .tokens = rank.request().tokens}, rank.stream());
    EXPECT_THROW((void)received.row_flags(), Error);
    EXPECT_THROW(
        rank.flagged().combine({.received = received, .out = rank.out(), .as_rows_finish = true}, rank.stream()),
        Error);
    rank.arena().synchronize();
    group.barrier();
  });
}

}  // namespace
}  // namespace epistle::testing
