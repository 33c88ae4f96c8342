// Sweeps the variants that the tuning table chooses among: SMs, how many of them serve peers, and how rows are moved;
// for one shape on two GPUs (or, with --virtual, on one). Prints one line per variant; the table in
// src/dispatch/cuda/tuning_table.hpp is made from such lines.
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
#include <sstream>
#include <string>
#include <vector>

#include <cuda_runtime_api.h>

#include "epistle/cuda.hpp"
#include "epistle/group.hpp"
#include "epistle/routing.hpp"

#include "dispatch/call/config_check.hpp"
#include "dispatch/cuda/direct/copy_engines.hpp"
#include "dispatch/cuda/engine/cuda_collective.hpp"
#include "gpu/cuda_error.hpp"
#include "measure/cuda/link_probe.hpp"
#include "measure/cuda/stream_timer.hpp"

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
      options.config.dtype = DType::kFp8E4m3;
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
        options.config.layout = OutputLayout::kExpertMajor;
        options.config.alignment = 128;
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
    if (options.config.layout != OutputLayout::kTokenMajor) {
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
  options.config.sizing = Sizing::kCapacity;
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
  bool separate = true;                       ///< every rank has a GPU of its own
  std::unique_ptr<CopyEngines> copy_engines;  ///< move.num_blocks are those that pack

 protected:
  void start_move(const CudaHandleState& handle, MoveArgs& args) override {
    if (copy_engines != nullptr) {
      if (copy_engines->dispatch(handle, args, move.num_blocks, stream())) return;
      throw Error(ErrorCode::kUnsupported, "the copy engines left a dispatch to the kernels");
    }
    args.tuning = move;
    check_cuda(launch_move(args, stream()), "launching dispatch");
  }
  [[nodiscard]] bool can_follow_closely() const noexcept override { return copy_engines == nullptr && separate; }
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
    const RoutingTable table =
        generate_routing(RoutingSpec::parse("uniform"), {.num_tokens = options.num_tokens,
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
    dispatcher_->separate = !options.one_gpu;
    if (options.copy_engines) {
      dispatcher_->copy_engines =
          std::make_unique<CopyEngines>(dispatcher_->layout(), group.rank(), device_, options.one_gpu);
      dispatcher_->copy_engines->set(options.copies);
    }
    const LayoutParams& params = dispatcher_->layout().params();
    std::vector<std::uint32_t> noise(static_cast<std::size_t>(options.num_tokens * params.row_bytes) / 4);
    for (std::size_t i = 0; i < noise.size(); ++i)
      noise[i] = 0x3f803f80U + static_cast<std::uint32_t>(i * 2654435761U % 0x00400040U);
    payload_.rows = copy_in(noise.data(), noise.size() * 4);
    payload_.scales = params.scale_bytes > 0
                          ? copy_in(noise.data(), static_cast<std::size_t>(options.num_tokens * params.scale_bytes))
                          : nullptr;
    payload_.num_tokens = options.num_tokens;
    noise_ = std::move(noise);
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
          dispatcher_->set_num_sms(blocks);
          report(call, blocks, 0, mover_name(false), [&] { handle = dispatcher_->prepare(routing_); });
          continue;
        }
        for (const int share : options_.shares) {
          const int peer =
              std::clamp((blocks * share + 500) / 1000, 1, share >= 1000 ? blocks : std::max(1, blocks - 1));
          for (const bool bulk : options_.bulk) {
            dispatcher_->move = {.num_blocks = blocks, .remote_blocks = peer, .bulk = bulk};
            dispatcher_->sum = {.num_blocks = blocks, .push_blocks = peer, .bulk = bulk};
            dispatcher_->set_num_sms(blocks);
            if (call == "dispatch") {
              report(call, blocks, peer, mover_name(bulk), [&] { dispatcher_->dispatch(handle, payload_); });
            } else if (call == "combine") {
              const DispatchOutput& output = handle.output();
              report(call, blocks, peer, mover_name(bulk),
                     [&] { dispatcher_->combine(handle, output.combine_rows, out_, out_bytes_); });
            } else {
              report(call, blocks, peer, mover_name(bulk),
                     [&] { handle = dispatcher_->prepare_and_dispatch(routing_, payload_); });
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

  void run_copy_engines(Handle& handle) {
    for (const std::string& call : options_.calls) {
      for (const int sms : options_.sms) {
        dispatcher_->move.num_blocks = std::max(1, sms);
        dispatcher_->dispatch(handle, payload_);
        dispatcher_->synchronize();
        check_rows(handle.output());
        const bool packs = dispatcher_->copy_engines->has_packed();
        const char* mover = packs ? "pack" : "runs";
        const int blocks = packs ? std::max(1, sms) : 0;
        if (call == "dispatch") {
          report(call, blocks, blocks, mover, [&] { dispatcher_->dispatch(handle, payload_); });
        } else if (call == "cold") {
          report(call, blocks, blocks, mover, [&] {
            handle = dispatcher_->prepare(routing_);
            dispatcher_->dispatch(handle, payload_);
          });
        } else {
          throw Error(ErrorCode::kInvalidArgument, "--mover copy-engines times dispatch and cold only, not " + call);
        }
      }
    }
  }

  /// Every rank has the same payload, so a received row is known by its token.
  void check_rows(const DispatchOutput& output) const {
    const auto num_rows = static_cast<std::size_t>(output.num_rows);
    std::vector<std::int32_t> tokens(num_rows);
    check_cuda(cudaMemcpy(tokens.data(), output.src_token, num_rows * sizeof(std::int32_t), cudaMemcpyDeviceToHost),
               "reading the tokens of rows");
    const auto check_part = [&](const std::byte* received, std::int64_t row_bytes) {
      const auto size = static_cast<std::size_t>(row_bytes);
      std::vector<std::byte> rows(num_rows * size);
      check_cuda(cudaMemcpy(rows.data(), received, rows.size(), cudaMemcpyDeviceToHost), "reading rows");
      for (std::size_t row = 0; row < num_rows; ++row) {
        const auto* sent =
            reinterpret_cast<const std::byte*>(noise_.data()) + static_cast<std::size_t>(tokens[row]) * size;
        if (std::memcmp(rows.data() + row * size, sent, size) == 0) continue;
        throw Error(ErrorCode::kVerificationFailed, "row " + std::to_string(row) + " of rank " +
                                                        std::to_string(group_.rank()) + " is not that of token " +
                                                        std::to_string(tokens[row]));
      }
    };
    check_part(output.rows, output.row_bytes);
    if (output.scale_bytes > 0) check_part(output.scales, output.scale_bytes);
    // Nothing is to be found where it was left by the dispatch before.
    check_cuda(cudaMemset(output.rows, 0, num_rows * static_cast<std::size_t>(output.row_bytes)), "clearing rows");
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
      const double time_us = timer.time(step, [&] { dispatcher_->synchronize(); });
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
  void* ids_ = nullptr;
  void* weights_ = nullptr;
  RoutingView routing_;
  Payload payload_;
  std::vector<std::uint32_t> noise_;
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
