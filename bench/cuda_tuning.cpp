// Sweeps the variants that the tuning table chooses among: SMs, how many of them serve peers, and how rows are moved;
// for one shape on two GPUs (or, with --virtual, on one). Prints one line per variant; the table in
// src/dispatch/cuda/direct/tuning_table.hpp is made from such lines.
//
//   cuda_tuning [--tokens N] [--hidden N] [--experts N] [--top-k N] [--fp8] [--layout token_major|expert_major]
//               [--virtual] [--sms A,B,C] [--shares P,Q] [--calls dispatch,combine,prepare,cold]
//               [--mover vector|bulk] [--loop]
//   cuda_tuning --mover copy-engines [--pack [--sms A,B,C]] [--streams N] [--no-batch] [--calls dispatch,cold] ...
//
// Two events stand around every call, and show almost 3 us of their own; --loop has them around eight calls in a row,
// as epistle bench does. With the copy engines the rows are checked once before anything is timed. --pack packs
// although the routing has few runs; --streams are those for one peer; --no-batch hands copies over one by one.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <variant>
#include <vector>

#include <cuda_runtime_api.h>

#include "epistle/cuda.hpp"
#include "epistle/group.hpp"
#include "epistle/routing.hpp"

#include "dispatch/call/resolved_config.hpp"
#include "dispatch/cuda/direct/copy_engines.hpp"
#include "dispatch/cuda/direct/direct_info.hpp"
#include "dispatch/cuda/direct/direct_launch.hpp"
#include "dispatch/cuda/direct/tuning.hpp"
#include "dispatch/cuda/engine/cuda_functions.hpp"
#include "dispatch/cuda/engine/sizes.hpp"
#include "dispatch/registry/registry.hpp"
#include "gpu/cuda_error.hpp"
#include "measure/cuda/link_probe.hpp"
#include "measure/cuda/stream_timer.hpp"
#include "measure/received_data.hpp"

namespace epistle::cuda {
namespace {

constexpr std::int32_t kAlignment = 128;

struct Options {
  DispatcherConfig config;
  std::int64_t num_tokens = 4096;
  bool one_gpu = false;
  std::vector<int> sms = {8, 16, 32, 132};
  std::vector<int> shares = {500, 1000};
  std::vector<std::string> calls = {"prepare", "dispatch", "combine", "cold"};
  std::vector<bool> bulk = {false, true};
  bool copy_engines = false;
  CopyEngineSettings copies;
  bool loop = false;
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
  bool default_sms = true;
  bool default_calls = true;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    const auto value = [&]() -> std::string { return ++i < argc ? argv[i] : ""; };
    if (name == "--tokens")
      options.num_tokens = std::stoll(value());
    else if (name == "--hidden")
      options.config.hidden = std::stoll(value());
    else if (name == "--experts")
      options.config.num_experts = std::stoi(value());
    else if (name == "--top-k")
      options.config.top_k = std::stoi(value());
    else if (name == "--fp8")
      options.config.input = DType::kFp8E4m3;
    else if (name == "--loop")
      options.loop = true;
    else if (name == "--virtual")
      options.one_gpu = true;
    else if (name == "--sms") {
      options.sms = numbers(value());
      default_sms = false;
    } else if (name == "--shares")
      options.shares = numbers(value());
    else if (name == "--calls") {
      options.calls = split(value());
      default_calls = false;
    } else if (name == "--layout") {
      if (value() == "expert_major") {
        options.config.layout = ExpertMajor{.alignment = kAlignment};
      }
    } else if (name == "--mover") {
      const std::string mover = value();
      options.copy_engines = mover == "copy-engines";
      options.bulk = {mover == "bulk"};
    } else if (name == "--pack") {
      options.copies.always_pack = true;
    } else if (name == "--streams") {
      options.copies.streams_per_peer = std::stoi(value());
    } else if (name == "--no-batch") {
      options.copies.batched = false;
    } else {
      std::fprintf(stderr, "unknown option %s\n", name.c_str());
      std::exit(2);
    }
  }
  options.config.max_tokens = options.num_tokens;
  options.config.zero_padding = false;
  if (options.copy_engines) {
    // The only layout and sizing they have; and there is nothing else to choose.
    if (!std::holds_alternative<TokenMajor>(options.config.layout)) {
      std::fprintf(stderr, "--mover copy-engines takes token_major only\n");
      std::exit(2);
    }
    if (!options.copies.always_pack)
      options.sms = {0};
    else if (default_sms)
      options.sms = {2, 4, 8, 16};
    if (default_calls) options.calls = {"dispatch"};
    options.shares = {1000};
    return options;
  }
  Capacity capacity{.rows_per_rank = 2 * options.num_tokens};
  if (std::holds_alternative<ExpertMajor>(options.config.layout)) {
    capacity.rows_per_rank = 2 * options.num_tokens * options.config.top_k / 2 * 11 / 10 +
                             std::int64_t{options.config.num_experts} / 2 * kAlignment;
  }
  options.config.sizing = capacity;
  return options;
}

/// What the sweep asks for in place of the table, on this rank.
struct Tuning {
  MoveTuning move;
  SumTuning sum;
  bool separate = true;                       ///< every rank has a GPU of its own
  std::optional<CopyEngineSettings> copies;   ///< by the copy engines
  std::unique_ptr<CopyEngines> copy_engines;  ///< move.num_blocks are those that pack
};

/// Of the rank whose thread this is.
thread_local Tuning* tuning_of_rank = nullptr;

/// How `direct` moves rows, tuned by the sweep.
class TunedTransport final : public RowTransport {
 public:
  explicit TunedTransport(EngineContext& context) : context_(context), tuning_(*tuning_of_rank) {
    check_cuda(load_direct_kernels(context.compute_major), "loading the kernels of direct");
    if (!tuning_.copies) return;
    tuning_.copy_engines = std::make_unique<CopyEngines>(context);
    tuning_.copy_engines->set(*tuning_.copies);
  }

  [[nodiscard]] bool agrees_on_host() const noexcept override { return false; }
  [[nodiscard]] TuningChoice tuning_for(const TuningQuery& query) const override { return choose(query); }
  [[nodiscard]] std::string describe_tuning(const TuningQuery& query) const override { return describe(query); }
  void start_move(const CudaHandleState& handle, MoveArgs& args) override {
    if (tuning_.copy_engines != nullptr) {
      if (tuning_.copy_engines->dispatch(handle, args, tuning_.move.num_blocks, context_.stream)) return;
      throw Error(ErrorCode::kUnsupported, "the copy engines left a dispatch to the kernels");
    }
    args.tuning = tuning_.move;
    check_cuda(launch_move(args, context_.stream), "launching dispatch");
  }
  [[nodiscard]] bool can_follow_closely() const noexcept override {
    return tuning_.copy_engines == nullptr && tuning_.separate;
  }
  void start_sum(const CudaHandleState& /*handle*/, SumArgs& args) override {
    args.tuning = tuning_.sum;
    const bool bulk = args.tuning.bulk && can_sum_in_bulk(args);
    check_cuda(bulk ? launch_sum_bulk(args, context_.stream) : launch_sum(args, context_.stream), "launching combine");
  }
  [[nodiscard]] WireBytes wire_bytes(const CudaHandleState& handle) const override {
    return wire_bytes_of(context_.plan, handle.stats);
  }

 private:
  EngineContext& context_;
  Tuning& tuning_;
};

/// A dispatcher of this program: all of `direct` but its choices.
const DispatcherInfo& tuned_info() {
  static constexpr DispatcherInfo::Functions kFunctions = {
      .plan = [](const ResolvedConfig& config,
                 int num_ranks) { return plan_buffers(config, {.num_ranks = num_ranks}, direct_rules()); },
      .own_memory = own_memory,
      .check = check_direct,
      .create = [](const Creation& creation) -> std::unique_ptr<DispatcherImpl> {
        return create_cuda_engine(creation, direct_rules(), make_transport<TunedTransport>);
      }};
  static const DispatcherInfo info("tuned", Device::kCuda, "direct with the choices of a sweep",
                                   direct_info().capabilities(), kFunctions);
  return info;
}

class Sweep {
 public:
  Sweep(Group& group, const Options& options) : group_(group), options_(options) {
    device_ = options.one_gpu ? 0 : group.rank();
    check_cuda(cudaSetDevice(device_), "choosing a device");
    check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream");
    const RoutingTable table =
        generate_routing(RoutingSpec::parse("uniform"), {.num_tokens = options.num_tokens,
                                                         .num_experts = options.config.num_experts,
                                                         .top_k = options.config.top_k,
                                                         .rank = group.rank(),
                                                         .num_ranks = group.size()});
    ids_ = {static_cast<const std::int32_t*>(
                copy_in(table.expert_ids.data(), table.expert_ids.size() * sizeof(std::int32_t))),
            table.num_tokens, table.top_k};
    weights_ = {static_cast<const float*>(copy_in(table.weights.data(), table.weights.size() * sizeof(float)))};
    const ResolvedConfig config = resolve_config(options.config, group.size());
    const LayoutParams params = to_layout_params(config, group.size());
    tuning_.separate = !options.one_gpu;
    if (options.copy_engines) tuning_.copies = options.copies;
    tuning_of_rank = &tuning_;
    dispatcher_ =
        std::make_unique<Dispatcher>(group, tuned_info().name(), options.config, CudaOptions{.device = device_});
    std::vector<std::uint32_t> noise(static_cast<std::size_t>(options.num_tokens * params.row_bytes) / 4);
    for (std::size_t i = 0; i < noise.size(); ++i)
      noise[i] = 0x3f803f80U + static_cast<std::uint32_t>(i * 2654435761U % 0x00400040U);
    tokens_ = {.data = copy_in(noise.data(), noise.size() * 4),
               .num_rows = options.num_tokens,
               .hidden = config.hidden,
               .dtype = config.dtype};
    if (params.scale_bytes > 0) {
      scales_ = {.data = copy_in(noise.data(), static_cast<std::size_t>(options.num_tokens * params.scale_bytes)),
                 .num_rows = options.num_tokens,
                 .num_columns = params.scale_bytes / static_cast<std::int64_t>(sizeof(float))};
    }
    noise_ = std::move(noise);
    out_ = {.num_rows = options.num_tokens, .hidden = config.combine_hidden, .dtype = config.combine_dtype};
    check_cuda(cudaMalloc(&out_.data, static_cast<std::size_t>(options.num_tokens * params.combine_row_bytes)),
               "allocating");
    limit_ = measure_link_limit(group, stream_, gather_devices(group));
  }

  void run() {
    Handle handle = prepare();
    dispatcher_->wait();
    const RoutingStats stats = handle.wait_stats();
    const WireBytes wire = dispatcher_->wire_bytes(handle);
    if (group_.rank() == 0) {
      std::printf(
          "limit: %.0f GB/s with %d SMs, %.0f with all; rows out %lld of %lld, %.1f MB dispatch, %.1f MB combine\n",
          limit_.bytes_per_s_few_sms / 1e9, limit_.few_sms, limit_.bytes_per_s_all_sms / 1e9,
          static_cast<long long>(stats.sent_remote_rows), static_cast<long long>(stats.num_tokens),
          static_cast<double>(wire.dispatch) / 1e6, static_cast<double>(wire.combine) / 1e6);
    }
    if (options_.copy_engines) return run_copy_engines(handle);
    for (const std::string& call : options_.calls) {
      for (const int sms : options_.sms) {
        const int blocks = options_.one_gpu ? std::min(sms, 132 / group_.size()) : sms;
        if (call == "prepare") {
          report(call, blocks, 0, mover_name(false), [&] { handle = prepare(blocks); });
          continue;
        }
        for (const int share : options_.shares) {
          const int peer =
              std::clamp((blocks * share + 500) / 1000, 1, share >= 1000 ? blocks : std::max(1, blocks - 1));
          for (const bool bulk : options_.bulk) {
            tuning_.move = {.num_blocks = blocks, .remote_blocks = peer, .bulk = bulk};
            tuning_.sum = {.num_blocks = blocks, .push_blocks = peer, .bulk = bulk};
            if (call == "dispatch") {
              report(call, blocks, peer, mover_name(bulk), [&] { static_cast<void>(dispatch(handle, blocks)); });
            } else if (call == "combine") {
              const Received received = dispatch(handle, blocks);
              report(call, blocks, peer, mover_name(bulk), [&] {
                dispatcher_->combine(
                    {.handle = handle, .rows = received.expert_outputs(), .out = out_, .num_sms = blocks}, stream_);
              });
            } else {
              report(call, blocks, peer, mover_name(bulk), [&] { handle = prepare_and_dispatch(blocks); });
            }
          }
        }
      }
    }
  }

 private:
  static constexpr int kWarmUps = 5;
  static constexpr int kSamples = 35;

  static const char* mover_name(bool bulk) { return bulk ? "bulk" : "vector"; }

  [[nodiscard]] Handle prepare(int num_sms = 0) {
    return dispatcher_->prepare({.expert_ids = ids_, .weights = weights_, .num_sms = num_sms}, stream_);
  }
  [[nodiscard]] Received dispatch(const Handle& handle, int num_sms = 0) {
    return dispatcher_->dispatch({.handle = handle, .tokens = tokens_, .scales = scales_, .num_sms = num_sms}, stream_);
  }
  [[nodiscard]] Handle prepare_and_dispatch(int num_sms) {
    return dispatcher_
        ->dispatch({.expert_ids = ids_, .weights = weights_, .tokens = tokens_, .scales = scales_, .num_sms = num_sms},
                   stream_)
        .handle();
  }

  void run_copy_engines(Handle& handle) {
    for (const std::string& call : options_.calls) {
      for (const int sms : options_.sms) {
        tuning_.move.num_blocks = std::max(1, sms);
        {
          const Received received = dispatch(handle);
          dispatcher_->wait();
          check_rows(data_of(received));
        }
        const bool packs = tuning_.copy_engines->has_packed();
        const char* mover = packs ? "pack" : "runs";
        const int blocks = packs ? std::max(1, sms) : 0;
        if (call == "dispatch") {
          report(call, blocks, blocks, mover, [&] { static_cast<void>(dispatch(handle)); });
        } else if (call == "cold") {
          report(call, blocks, blocks, mover, [&] {
            handle = prepare();
            static_cast<void>(dispatch(handle));
          });
        } else {
          throw Error(ErrorCode::kInvalidArgument, "--mover copy-engines times dispatch and cold only, not " + call);
        }
      }
    }
  }

  /// Every rank has the same payload, so a received row is known by its token.
  void check_rows(const ReceivedData& received) const {
    const auto num_rows = static_cast<std::size_t>(received.num_rows());
    std::vector<std::int32_t> tokens(num_rows);
    check_cuda(cudaMemcpy(tokens.data(), received.description.src_token, num_rows * sizeof(std::int32_t),
                          cudaMemcpyDeviceToHost),
               "reading the tokens of rows");
    const auto check_part = [&](const std::byte* device_rows, std::int64_t row_bytes) {
      const auto size = static_cast<std::size_t>(row_bytes);
      std::vector<std::byte> rows(num_rows * size);
      check_cuda(cudaMemcpy(rows.data(), device_rows, rows.size(), cudaMemcpyDeviceToHost), "reading rows");
      for (std::size_t row = 0; row < num_rows; ++row) {
        const auto* sent =
            reinterpret_cast<const std::byte*>(noise_.data()) + static_cast<std::size_t>(tokens[row]) * size;
        if (std::memcmp(rows.data() + row * size, sent, size) == 0) continue;
        throw Error(ErrorCode::kVerificationFailed, "row " + std::to_string(row) + " of rank " +
                                                        std::to_string(group_.rank()) + " is not that of token " +
                                                        std::to_string(tokens[row]));
      }
    };
    const std::int64_t row_bytes = received.rows.row_bytes();
    check_part(received.row_data(), row_bytes);
    if (received.scale_row_bytes() > 0) check_part(received.scale_data(), received.scale_row_bytes());
    // Nothing is to be found where it was left by the dispatch before.
    check_cuda(cudaMemset(received.rows.data, 0, num_rows * static_cast<std::size_t>(row_bytes)), "clearing rows");
    check_cuda(cudaDeviceSynchronize(), "clearing rows");
    group_.barrier();
  }

  void* copy_in(const void* source, std::size_t num_bytes) {
    void* target = nullptr;
    check_cuda(cudaMalloc(&target, num_bytes), "allocating");
    check_cuda(cudaMemcpy(target, source, num_bytes, cudaMemcpyHostToDevice), "copying inputs");
    return target;
  }

  template <typename Step>
  void report(const std::string& call, int blocks, int peer, const char* mover, const Step& step) {
    StreamTimer timer(group_, stream_, options_.loop ? kDefaultRunsPerSample : 1);
    std::vector<double> times;
    for (int sample = 0; sample < kWarmUps + kSamples; ++sample) {
      const double time_us = timer.time(step, [&] { dispatcher_->wait(); });
      if (sample >= kWarmUps) times.push_back(time_us);
    }
    std::sort(times.begin(), times.end());
    if (group_.rank() == 0) {
      std::printf("%-9s %3d SMs %3d for peers %-6s median %7.1f us  p10 %7.1f  p90 %7.1f\n", call.c_str(), blocks, peer,
                  mover, times[times.size() / 2], times[times.size() / 10], times[times.size() * 9 / 10]);
      std::fflush(stdout);
    }
  }

  Group& group_;
  const Options& options_;
  int device_ = 0;
  cudaStream_t stream_ = nullptr;
  IdsView ids_;
  WeightsView weights_;
  ConstRows tokens_;
  ScalesView scales_;
  std::vector<std::uint32_t> noise_;
  Rows out_;
  LinkLimit limit_;
  Tuning tuning_;
  std::unique_ptr<Dispatcher> dispatcher_;
};

}  // namespace
}  // namespace epistle::cuda

int main(int argc, char** argv) {
  try {
    const auto options = epistle::cuda::parse(argc, argv);
    epistle::register_dispatcher(epistle::cuda::tuned_info());
    epistle::run_thread_ranks(2, [&](epistle::Group& group) { epistle::cuda::Sweep(group, options).run(); });
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
  return 0;
}
