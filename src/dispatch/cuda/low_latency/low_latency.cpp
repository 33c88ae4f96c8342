#include "dispatch/cuda/low_latency/low_latency.hpp"

#include <algorithm>

#include <fmt/format.h>

#include "dispatch/call/dispatcher_functions.hpp"
#include "dispatch/cuda/engine/cuda_functions.hpp"
#include "dispatch/cuda/engine/cuda_options.hpp"
#include "dispatch/cuda/low_latency/line_launch.hpp"
#include "dispatch/cuda/low_latency/low_latency_info.hpp"
#include "gpu/cuda_error.hpp"

namespace epistle::cuda {
namespace {

/// Chunks that the warps of a block move one behind the other, as long as there are SMs for more blocks.
constexpr std::int64_t kUnitsPerBlock = 8;
/// Of a combine. With more, which is with few SMs, a warp that moves wide chunks is done sooner.
constexpr std::int64_t kNarrowUnitsPerWarp = 4;
/// What other ranks send is not known when a kernel is launched: at least this part of the largest call is provided
/// for.
constexpr std::int64_t kShareOfOthers = 8;

/// Throws where a warp could not count what is to be moved.
void check_rows(const LinePlan& lines, std::int64_t max_tokens) {
  if (lines.combines) return;
  throw Error(
      ErrorCode::kUnsupported,
      fmt::format("low_latency combines up to 2^32 / {} pieces of rows, and {} tokens of {} bytes from {} ranks "
                  "are more; lower max_tokens or hidden, or use direct",
                  std::max(lines.combine_chunks, lines.num_ranks), max_tokens, lines.combine_row_bytes,
                  lines.num_ranks));
}

/// Throws where a block of `device` has too little shared memory.
void check_shared_memory(int device, std::int64_t needed_bytes) {
  int limit_bytes = 0;
  check_cuda(cudaDeviceGetAttribute(&limit_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
             "asking for the shared memory of a block");
  if (needed_bytes <= limit_bytes) return;
  throw Error(ErrorCode::kUnsupported,
              fmt::format("low_latency needs {} bytes of shared memory for routings of this size, a block of device {} "
                          "has {}; lower max_tokens, top_k or num_experts, or use direct",
                          needed_bytes, device, limit_bytes));
}

/// Throws where flags of rows were asked for and no dispatch would raise them.
void check_row_flags(const DispatchLayout& layout) {
  if (plan_lines(layout).routes && !layout.token_major()) return;
  throw Error(ErrorCode::kUnsupported,
              fmt::format("flags of rows (CudaOptions::row_flags) need an expert layout, capacity sizing with room for "
                          "every routing, and at most {} entries of a routing; this is {} of {} tokens, top-{}: change "
                          "that, or leave the option out",
                          kMaxLineEntries, to_string(layout.params().layout), layout.params().max_tokens,
                          layout.params().top_k));
}

}  // namespace

LowLatencyTransport::LowLatencyTransport(EngineContext& context)
    : context_(context), lines_(plan_lines(context.layout())), direct_(context) {
  const auto error = attempt([&] {
    check_rows(lines_, context.config.max_tokens);
    const DeviceGuard guard(context.device);
    if (lines_.routes) check_shared_memory(context.device, line_shared_bytes(context.layout()));
    check_cuda(load_line_kernels(lines_), "loading the kernels of low_latency");
    if (has_extras()) check_cuda(load_extra_kernels(lines_), "loading the kernels of low_latency with extras");
    if (context.options.row_flags) flags_ = RowFlagMemory(context);
  });
  (void)context.group->agree(kGpuSetUp, Phase::kCreate, error);
}

bool LowLatencyTransport::has_extras() const noexcept {
  return context_.options.row_flags || lays_scales_in_columns(context_.layout());
}

int LowLatencyTransport::budget() const noexcept {
  return context_.num_sms > 0 ? std::min(context_.num_sms, context_.sm_share) : context_.sm_share;
}

int LowLatencyTransport::num_blocks(std::int64_t num_units) const noexcept {
  const std::int64_t wanted = (num_units + kUnitsPerBlock - 1) / kUnitsPerBlock;
  return static_cast<int>(std::clamp(wanted, std::int64_t{1}, std::int64_t{budget()}));
}

std::int64_t LowLatencyTransport::tokens_to_move(const CudaHandleState& handle) const noexcept {
  return std::max(handle.num_tokens, context_.config.max_tokens / kShareOfOthers);
}

void LowLatencyTransport::start_move(const CudaHandleState& handle, MoveArgs& args) {
  direct_.start_move(handle, args);
}

void LowLatencyTransport::start_routed_move(const CudaHandleState& handle, const PrepareArgs& routing, MoveArgs& args) {
  LineDispatchArgs lines;
  lines.routing = routing;
  lines.lines = lines_;
  lines.rows = args.rows;
  lines.scales = args.scales;
  lines.strides = args.strides;
  lines.buffer = args.buffer;
  lines.phases = args.phases;
  lines.zero_padding = args.zero_padding;
  // One more for the books.
  lines.num_blocks = num_blocks(tokens_to_move(handle) * lines_.dispatch_parts * 2 + kUnitsPerBlock);
  lines.next_starts_early = may_overlap(lines.num_blocks);
  if (has_extras()) {
    const ExtraDispatchArgs extra{lines, flags_.for_dispatch(args.buffer),
                                  args.layout.scale_places(handle.description.num_rows)};
    check_cuda(launch_extra_dispatch(extra, context_.stream), "launching dispatch");
    return;
  }
  check_cuda(launch_line_dispatch(lines, context_.stream), "launching dispatch");
}

void LowLatencyTransport::complete(const CudaHandleState& handle) {
  if (!handle.routed) return;
  const LineCompleteArgs args{.group = context_.device_group, .layout = context_.layout(), .handle = handle.arrays};
  check_cuda(launch_line_complete(args, context_.stream), "launching the completion of a handle");
}

void LowLatencyTransport::start_sum(const CudaHandleState& handle, SumArgs& args) {
  if (args.call != DeviceCall::kCombine) return direct_.start_sum(handle, args);
  LineCombineArgs lines{.sum = args, .lines = lines_};
  lines.sum.tuning.num_blocks = num_blocks(tokens_to_move(handle) * lines_.combine_chunks * 2 + kUnitsPerBlock);
  lines.next_starts_early = may_overlap(lines.sum.tuning.num_blocks);
  const std::int64_t num_units =
      tokens_to_move(handle) * lines_.combine_chunks * std::min(lines_.num_ranks, lines_.top_k);
  lines.wide = num_units > std::int64_t{lines.sum.tuning.num_blocks} * kLineWarps * kNarrowUnitsPerWarp;
  if (handle.is_left_on_device) {
    lines.passed_id = &handle.summary->passed_id;
    lines.prepare_id = handle.prepare_id;
  }
  if (context_.as_rows_finish) {
    const device::RowFlags flags = flags_.of_buffer(context_.buffer);
    lines.next_starts_early = false;
    const MarkedCombineArgs marked{lines, flags.number, flags.done};
    check_cuda(launch_marked_combine(marked, context_.stream), "launching combine");
    return;
  }
  check_cuda(launch_line_combine(lines, context_.stream), "launching combine");
}

void check_low_latency(const ResolvedConfig& config, const DeviceOptions& options, const Group& group) {
  const auto& cuda_options = std::get<CudaOptions>(options);
  check_cuda_options(config, options, group);
  if (cuda_options.row_flags) check_row_flags(DispatchLayout(to_layout_params(config, group.size())));
}

std::unique_ptr<DispatcherImpl> create_low_latency(const Creation& creation) {
  return create_cuda_engine(creation, low_latency_rules(), make_transport<LowLatencyTransport>);
}

}  // namespace epistle::cuda
