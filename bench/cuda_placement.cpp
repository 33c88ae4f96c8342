// What a placement costs between two GPUs: `cuda_placement [SAMPLES]` times a layout, dispatch, and a round trip with
// replicas and without, in turns within one process, and what quotas of a batch add to a layout.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <utility>
#include <vector>

#include <cuda_runtime_api.h>

#include <fmt/format.h>

#include "epistle/cuda.hpp"
#include "epistle/dispatcher.hpp"
#include "epistle/group.hpp"
#include "epistle/routing.hpp"

#include "gpu/cuda_error.hpp"
#include "measure/cuda/stream_gate.hpp"
#include "measure/cuda/timed_event.hpp"
#include "measure/statistics.hpp"
#include "report/format.hpp"
#include "report/table.hpp"

namespace epistle::bench {
namespace {

using cuda::check_cuda;

constexpr int kNumGpus = 2;
constexpr std::int32_t kExperts = 256;
constexpr std::int32_t kTopK = 8;
constexpr std::int64_t kTokens = 4096;
constexpr std::int64_t kHidden = 7168;
constexpr int kChain = 8;  // calls in a row that one sample is the mean of

enum class Work : std::size_t { kQuotas, kLayout, kQuotasAndLayout, kDispatch, kLayoutAndDispatch, kRoundTrip };
constexpr std::size_t kNumWorks = 6;
constexpr const char* kNames[kNumWorks] = {"quotas of a batch", "layout",           "quotas, layout",
                                           "dispatch",          "layout, dispatch", "layout, dispatch, combine"};

/// Every rank has half of the experts and some of the other half.
Placement halves_and_replicas(std::int32_t num_replicas) {
  std::vector<std::vector<std::int32_t>> slots(kNumGpus);
  for (std::int32_t expert = 0; expert < kExperts; ++expert) {
    const bool second = expert >= kExperts / 2;
    slots[second ? 1 : 0].push_back(expert);
    if (expert % (kExperts / 2) < num_replicas) slots[second ? 0 : 1].push_back(expert);
  }
  return {kExperts, slots, 1};
}

DispatcherConfig config_of(std::int32_t num_replicas) {
  DispatcherConfig config{.hidden = kHidden,
                          .num_experts = kExperts,
                          .top_k = kTopK,
                          .max_tokens = kTokens,
                          .sizing = Capacity{.rows_per_rank = kNumGpus * kTokens}};
  if (num_replicas > 0) {
    config.placement = halves_and_replicas(num_replicas);
    config.slots_per_rank = kExperts / 2 + num_replicas;
  }
  return config;
}

/// Device memory for as long as the program runs.
template <typename Value>
Value* to_device(const std::vector<Value>& values) {
  void* memory = nullptr;
  check_cuda(cudaMalloc(&memory, values.size() * sizeof(Value)), "allocating");
  check_cuda(cudaMemcpy(memory, values.data(), values.size() * sizeof(Value), cudaMemcpyHostToDevice), "copying");
  return static_cast<Value*>(memory);
}

/// What calls take of a rank, the same with replicas and without.
struct Inputs {
  explicit Inputs(Group& group) : stream(make_stream(group.rank())) {
    std::vector<std::int64_t> counts(kExperts, 0);
    for (int rank = 0; rank < kNumGpus; ++rank) {
      const RoutingTable routing = generate_routing(RoutingSpec::parse("uniform"), {.num_tokens = kTokens,
                                                                                    .num_experts = kExperts,
                                                                                    .top_k = kTopK,
                                                                                    .rank = rank,
                                                                                    .num_ranks = kNumGpus,
                                                                                    .seed = 1});
      for (const std::int32_t id : routing.expert_ids) ++counts[static_cast<std::size_t>(id)];
      if (rank == group.rank()) ids = to_device(routing.expert_ids);
    }
    expert_tokens = to_device(counts);
    rows = to_device(std::vector<std::uint16_t>(static_cast<std::size_t>(kTokens * kHidden), 0));
    out = to_device(std::vector<std::uint16_t>(static_cast<std::size_t>(kTokens * kHidden), 0));
    group.barrier();
  }

  static cudaStream_t make_stream(int device) {
    check_cuda(cudaSetDevice(device), "choosing a GPU");
    cudaStream_t stream = nullptr;
    check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "creating a stream");
    return stream;
  }

  cudaStream_t stream;
  const std::int32_t* ids = nullptr;
  const std::int64_t* expert_tokens = nullptr;
  std::uint16_t* rows = nullptr;
  std::uint16_t* out = nullptr;
};

class Calls {
 public:
  Calls(Group& group, const Inputs& inputs, std::int32_t num_replicas)
      : inputs_(inputs),
        gate_(group, inputs.stream),
        moe_(group, "direct", config_of(num_replicas), CudaOptions{.device = group.rank()}),
        handle_(moe_.prepare({.expert_ids = ids()}, inputs.stream)) {
    moe_.wait();
  }

  /// Of one call, by the stream; the first of a chain brings the ranks together and does not count.
  double time_us(Work work) {
    gate_.hold(kChain + 1);
    put(work);
    begin_.record(inputs_.stream);
    for (int idx = 0; idx < kChain; ++idx) put(work);
    end_.record(inputs_.stream);
    moe_.wait();
    return end_.us_since(begin_) / kChain;
  }

 private:
  [[nodiscard]] IdsView ids() const { return {inputs_.ids, kTokens, kTopK}; }

  void put(Work work) {
    if (work == Work::kQuotas || work == Work::kQuotasAndLayout) {
      moe_.set_batch_quotas({.expert_tokens = inputs_.expert_tokens}, inputs_.stream);
    }
    if (work == Work::kLayout || work == Work::kQuotasAndLayout) {
      (void)moe_.prepare({.expert_ids = ids()}, inputs_.stream);
    }
    const ConstRows tokens{.data = inputs_.rows, .num_rows = kTokens, .hidden = kHidden};
    if (work == Work::kDispatch) (void)moe_.dispatch({.handle = handle_, .tokens = tokens}, inputs_.stream);
    if (work != Work::kLayoutAndDispatch && work != Work::kRoundTrip) return;
    const Received received = moe_.dispatch({.expert_ids = ids(), .tokens = tokens}, inputs_.stream);
    if (work == Work::kLayoutAndDispatch) return;
    moe_.combine({.received = received, .out = {.data = inputs_.out, .num_rows = kTokens, .hidden = kHidden}},
                 inputs_.stream);
  }

  const Inputs& inputs_;
  StreamGate gate_;
  Dispatcher moe_;
  Handle handle_;
  TimedEvent begin_;
  TimedEvent end_;
};

/// Of rank 0, by Work.
struct Times {
  std::vector<double> without_us[kNumWorks];
  std::vector<double> with_us[kNumWorks];
};

Times measure(std::int32_t num_replicas, int num_samples) {
  Times times;
  run_thread_ranks(kNumGpus, [&](Group& group) {
    const Inputs inputs(group);
    Calls without(group, inputs, 0);
    Calls with(group, inputs, num_replicas);
    Times own;
    for (int sample = 0; sample < num_samples; ++sample) {
      for (std::size_t idx = 0; idx < kNumWorks; ++idx) {
        const auto work = static_cast<Work>(idx);
        // Quotas are of placements only.
        const bool is_of_both = work != Work::kQuotas && work != Work::kQuotasAndLayout;
        for (int turn = 0; turn < 2; ++turn) {
          const bool is_with = (turn == 0) == (sample % 2 == 0);
          if (!is_with && !is_of_both) continue;
          (is_with ? own.with_us : own.without_us)[idx].push_back((is_with ? with : without).time_us(work));
        }
      }
    }
    group.barrier();
    if (group.rank() == 0) times = std::move(own);
  });
  return times;
}

void print(std::int32_t num_replicas, const Times& times) {
  Table table({{fmt::format("2 GPUs, 4,096 tokens, {} replicas a rank", num_replicas), Align::kLeft},
               {"without", Align::kRight},
               {"with", Align::kRight},
               {"ratio", Align::kRight}});
  for (std::size_t idx = 0; idx < kNumWorks; ++idx) {
    const double with = summarize(times.with_us[idx]).median;
    const double without = times.without_us[idx].empty() ? 0.0 : summarize(times.without_us[idx]).median;
    table.add_row({kNames[idx], without > 0.0 ? fmt::format("{:.2f} us", without) : "", fmt::format("{:.2f} us", with),
                   without > 0.0 ? fmt::format("{:.4f}", with / without) : ""});
  }
  std::fputs(table.render().c_str(), stdout);
  std::fflush(stdout);
}

}  // namespace
}  // namespace epistle::bench

int main(int argc, char** argv) {
  constexpr int kDefaultSamples = 200;
  constexpr long kMostSamples = 1'000'000;
  const long asked = argc > 1 ? std::strtol(argv[1], nullptr, 10) : kDefaultSamples;
  if (argc > 2 || asked <= 0 || asked > kMostSamples) {
    std::fputs("usage: cuda_placement [SAMPLES]\n", stderr);
    return 2;
  }
  if (epistle::cuda_support().num_devices < epistle::bench::kNumGpus) {
    std::fputs("cuda_placement needs two GPUs\n", stderr);
    return 77;
  }
  const auto num_samples = static_cast<int>(asked);
  for (const std::int32_t num_replicas : {16, 64}) {
    epistle::bench::print(num_replicas, epistle::bench::measure(num_replicas, num_samples));
  }
  return 0;
}
