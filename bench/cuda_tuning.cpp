// Sweeps the variants that the tuning table chooses among: SMs, how many of them serve peers, and how rows are moved; for
// one shape on two GPUs (or, with --virtual, on one). Prints one line per variant; the table in
// src/dispatch/cuda/tuning_table.hpp is made from such lines.
//
//   cuda_tuning [--tokens N] [--hidden N] [--experts N] [--top-k N] [--fp8] [--layout token_major|expert_major]
//               [--virtual] [--sms A,B,C] [--shares P,Q] [--calls dispatch,combine,prepare,cold]
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <sstream>
#include <string>
#include <vector>

#include <cuda_runtime_api.h>

#include "epistle/cuda.hpp"
#include "epistle/group.hpp"
#include "epistle/routing.hpp"

#include "dispatch/config_check.hpp"
#include "dispatch/cuda/cuda_collective.hpp"
#include "group/cuda/cuda_error.hpp"
#include "measure/cuda/bench_kernels.hpp"
#include "measure/cuda/link_probe.hpp"
#include "measure/statistics.hpp"

namespace epistle::cuda {
namespace {

struct Options {
  DispatcherConfig config;
  std::int64_t num_tokens = 4096;
  bool one_gpu = false;
  std::vector<int> sms = {8, 16, 32, 132};
  std::vector<int> shares = {500, 1000};
  std::vector<std::string> calls = {"prepare", "dispatch", "combine", "cold"};
  std::vector<bool> bulk = {false, true};
};

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  std::stringstream stream(text);
  for (std::string part; std::getline(stream, part, ',');) parts.push_back(part);
  return parts;
}

std::vector<int> numbers(const std::string& text) {
  std::vector<int> values;
  for (const std::string& part : split(text)) values.push_back(std::stoi(part));
  return values;
}

Options parse(int argc, char** argv) {
  Options options;
  options.config.hidden = 7168;
  options.config.num_experts = 256;
  options.config.top_k = 8;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    const auto value = [&]() -> std::string { return ++i < argc ? argv[i] : ""; };
    if (name == "--tokens") options.num_tokens = std::stoll(value());
    else if (name == "--hidden") options.config.hidden = std::stoll(value());
    else if (name == "--experts") options.config.num_experts = std::stoi(value());
    else if (name == "--top-k") options.config.top_k = std::stoi(value());
    else if (name == "--fp8") options.config.dtype = DType::kFp8E4m3;
    else if (name == "--virtual") options.one_gpu = true;
    else if (name == "--sms") options.sms = numbers(value());
    else if (name == "--shares") options.shares = numbers(value());
    else if (name == "--calls") options.calls = split(value());
    else if (name == "--layout") {
      if (value() == "expert_major") {
        options.config.layout = OutputLayout::kExpertMajor;
        options.config.alignment = 128;
      }
    } else if (name == "--mover") {
      options.bulk = {std::string(value()) == "bulk"};
    } else {
      std::fprintf(stderr, "unknown option %s\n", name.c_str());
      std::exit(2);
    }
  }
  options.config.max_tokens = options.num_tokens;
  options.config.sizing = Sizing::kCapacity;
  options.config.zero_padding = false;
  options.config.capacity_rows = 2 * options.num_tokens;
  if (options.config.layout == OutputLayout::kExpertMajor) {
    options.config.capacity_rows = 2 * options.num_tokens * options.config.top_k / 2 * 11 / 10 +
                                   std::int64_t{options.config.num_experts} / 2 * options.config.alignment;
  }
  return options;
}

/// `direct` with whatever the sweep asks for in place of the table.
class TunedDispatcher final : public CudaCollective {
 public:
  TunedDispatcher(Group& group, const DispatcherConfig& config, int device)
      : CudaCollective(group, config, CudaOptions{.device = device}, device) {}
  [[nodiscard]] std::string_view name() const noexcept override { return "tuned"; }
  MoveTuning move;
  SumTuning sum;

 protected:
  void start_move(const CudaHandleState& /*handle*/, MoveArgs& args) override {
    args.tuning = move;
    check_cuda(launch_move(args, stream()), "launching dispatch");
  }
  void start_sum(const CudaHandleState& /*handle*/, SumArgs& args) override {
    args.tuning = sum;
    check_cuda(launch_sum(args, stream()), "launching combine");
  }
};

class Sweep {
 public:
  Sweep(Group& group, const Options& options) : group_(group), options_(options) {
    device_ = options.one_gpu ? 0 : group.rank();
    check_cuda(cudaSetDevice(device_), "choosing a device");
    check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream");
    for (cudaEvent_t& event : events_) check_cuda(cudaEventCreate(&event), "creating an event");
    const RoutingTable table = generate_routing(
        RoutingSpec::parse("uniform"), {.num_tokens = options.num_tokens,
                                        .num_experts = options.config.num_experts,
                                        .top_k = options.config.top_k,
                                        .rank = group.rank(),
                                        .num_ranks = group.size()});
    ids_ = copy_in(table.expert_ids.data(), table.expert_ids.size() * sizeof(std::int32_t));
    weights_ = copy_in(table.weights.data(), table.weights.size() * sizeof(float));
    routing_ = {ids_, static_cast<const float*>(weights_), table.num_tokens, table.top_k, IdType::kInt32};
    const DispatcherConfig config = resolve_config(options.config, group.size());
    dispatcher_ = std::make_unique<TunedDispatcher>(group, config, device_);
    dispatcher_->set_stream(stream_);
    const LayoutParams& params = dispatcher_->layout().params();
    std::vector<std::uint32_t> noise(static_cast<std::size_t>(options.num_tokens * params.row_bytes) / 4);
    for (std::size_t i = 0; i < noise.size(); ++i) noise[i] = 0x3f803f80U + static_cast<std::uint32_t>(i * 2654435761U % 0x00400040U);
    payload_.rows = copy_in(noise.data(), noise.size() * 4);
    payload_.scales = params.scale_bytes > 0
                          ? copy_in(noise.data(), static_cast<std::size_t>(options.num_tokens * params.scale_bytes))
                          : nullptr;
    payload_.num_tokens = options.num_tokens;
    out_bytes_ = options.num_tokens * params.combine_row_bytes;
    check_cuda(cudaMalloc(&out_, static_cast<std::size_t>(out_bytes_)), "allocating");
    limit_ = measure_link_limit(group, stream_, gather_devices(group));
  }

  void run() {
    Handle handle = dispatcher_->prepare(routing_);
    dispatcher_->synchronize();
    const RoutingStats stats = handle.stats();
    const WireBytes wire = dispatcher_->wire_bytes(handle);
    if (group_.rank() == 0) {
      std::printf("limit: %.0f GB/s with %d SMs, %.0f with all; rows out %lld of %lld, %.1f MB dispatch, %.1f MB combine\n",
                  limit_.bytes_per_s_few_sms / 1e9, limit_.few_sms, limit_.bytes_per_s_all_sms / 1e9,
                  static_cast<long long>(stats.sent_remote_rows), static_cast<long long>(stats.num_tokens),
                  static_cast<double>(wire.dispatch) / 1e6, static_cast<double>(wire.combine) / 1e6);
    }
    for (const std::string& call : options_.calls) {
      for (const int sms : options_.sms) {
        const int blocks = options_.one_gpu ? std::min(sms, 132 / group_.size()) : sms;
        if (call == "prepare") {
          dispatcher_->set_num_sms(blocks);
          report(call, blocks, 0, false, [&] { handle = dispatcher_->prepare(routing_); });
          continue;
        }
        for (const int share : options_.shares) {
          const int peer = std::clamp((blocks * share + 500) / 1000, 1, share >= 1000 ? blocks : std::max(1, blocks - 1));
          for (const bool bulk : options_.bulk) {
            dispatcher_->move = {.num_blocks = blocks, .remote_blocks = peer, .bulk = bulk};
            dispatcher_->sum = {.num_blocks = blocks, .push_blocks = peer};
            dispatcher_->set_num_sms(blocks);
            if (call == "dispatch") {
              report(call, blocks, peer, bulk, [&] { dispatcher_->dispatch(handle, payload_); });
            } else if (call == "combine") {
              if (bulk && options_.bulk.size() > 1) continue;
              const DispatchOutput& output = handle.output();
              report(call, blocks, peer, bulk, [&] { dispatcher_->combine(handle, output.combine_rows, out_, out_bytes_); });
            } else {
              report(call, blocks, peer, bulk, [&] {
                handle = dispatcher_->prepare(routing_);
                dispatcher_->dispatch(handle, payload_);
              });
            }
          }
        }
      }
    }
  }

 private:
  static constexpr int kPerBatch = 6;
  static constexpr int kBatches = 8;

  void* copy_in(const void* source, std::size_t num_bytes) {
    void* target = nullptr;
    check_cuda(cudaMalloc(&target, num_bytes), "allocating");
    check_cuda(cudaMemcpy(target, source, num_bytes, cudaMemcpyHostToDevice), "copying inputs");
    return target;
  }

  template <typename Step>
  void report(const std::string& call, int blocks, int peer, bool bulk, const Step& step) {
    std::vector<double> times;
    for (int batch = 0; batch < kBatches; ++batch) {
      group_.barrier();
      check_cuda(launch_bench_delay(stream_, 150'000), "delaying");
      for (int i = 0; i < kPerBatch; ++i) {
        check_cuda(cudaEventRecord(events_[2 * i], stream_), "recording");
        step();
        check_cuda(cudaEventRecord(events_[2 * i + 1], stream_), "recording");
      }
      dispatcher_->synchronize();
      for (int i = 1; i < kPerBatch && batch > 0; ++i) {
        float ms = 0;
        check_cuda(cudaEventElapsedTime(&ms, events_[2 * i], events_[2 * i + 1]), "timing");
        times.push_back(static_cast<double>(ms) * 1e3);
      }
    }
    std::vector<double> all(times.size() * static_cast<std::size_t>(group_.size()));
    group_.all_gather(times.data(), times.size() * sizeof(double), all.data());
    for (std::size_t i = 0; i < times.size(); ++i) {
      for (int r = 0; r < group_.size(); ++r) times[i] = std::max(times[i], all[static_cast<std::size_t>(r) * times.size() + i]);
    }
    std::sort(times.begin(), times.end());
    if (group_.rank() == 0) {
      std::printf("%-9s %3d SMs %3d for peers %-6s median %7.1f us  p10 %7.1f  p90 %7.1f\n", call.c_str(), blocks, peer,
                  bulk ? "bulk" : "vector", times[times.size() / 2], times[times.size() / 10],
                  times[times.size() * 9 / 10]);
      std::fflush(stdout);
    }
  }

  Group& group_;
  const Options& options_;
  int device_ = 0;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t events_[2 * kPerBatch] = {};
  void* ids_ = nullptr;
  void* weights_ = nullptr;
  RoutingView routing_;
  Payload payload_;
  void* out_ = nullptr;
  std::int64_t out_bytes_ = 0;
  LinkLimit limit_;
  std::unique_ptr<TunedDispatcher> dispatcher_;
};

}  // namespace
}  // namespace epistle::cuda

int main(int argc, char** argv) {
  try {
    const auto options = epistle::cuda::parse(argc, argv);
    static_cast<void>(epistle::cuda_support());
    epistle::run_thread_ranks(2, [&](epistle::Group& group) { epistle::cuda::Sweep(group, options).run(); });
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
  return 0;
}
