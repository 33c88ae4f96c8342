#include "dispatch/cuda/direct/direct.hpp"

#include <fmt/format.h>

#include "dispatch/call/dispatcher_functions.hpp"
#include "dispatch/cuda/direct/direct_info.hpp"
#include "dispatch/cuda/direct/direct_launch.hpp"
#include "dispatch/cuda/engine/cuda_functions.hpp"
#include "dispatch/cuda/engine/cuda_options.hpp"
#include "gpu/cuda_error.hpp"

namespace epistle::cuda {

DirectTransport::DirectTransport(EngineContext& context) : context_(context) {
  const auto error = attempt([&] {
    const DeviceGuard guard(context.device);
    check_cuda(load_direct_kernels(context.compute_major), "loading the kernels of direct");
    if (context.options.mover != CudaMover::kCopyEngines) return;
    copy_engines_ = std::make_unique<CopyEngines>(context);
  });
  // The mover may differ by rank, so all of them come here.
  (void)context.group->agree(kGpuSetUp, Phase::kCreate, error);
}

void DirectTransport::start_move(const CudaHandleState& handle, MoveArgs& args) {
  const TuningQuery query =
      context_.tuning_query(args.behind_prepare ? TunedCall::kColdDispatch : TunedCall::kDispatch, handle.num_tokens);
  const bool is_dispatch = args.target == BufferSection::kReceiveRows;
  if (copy_engines_ != nullptr && is_dispatch &&
      copy_engines_->dispatch(handle, args, pack_blocks(query), context_.stream)) {
    return;
  }
  const TuningChoice choice = choose(query);
  args.tuning = {.num_blocks = choice.num_blocks, .remote_blocks = choice.peer_blocks, .bulk = choice.bulk};
  if (args.target != BufferSection::kReceiveRows || !lays_scales_in_columns(args.layout)) {
    check_cuda(launch_move(args, context_.stream), "launching dispatch");
    return;
  }
  ColumnMoveArgs columns{args};
  const LayoutParams& params = args.layout.params();
  const bool exact = params.sizing == SizingMode::kExact;
  // What an expert's block has does not depend on it.
  for (int rank = 0; rank < context_.num_ranks(); ++rank) {
    columns.num_rows[rank] = static_cast<std::int32_t>(exact ? handle.output_rows(rank) : params.capacity_rows);
  }
  check_cuda(launch_column_move(columns, context_.stream), "launching dispatch");
}

void DirectTransport::start_sum(const CudaHandleState& handle, SumArgs& args) {
  const TuningChoice choice = choose(context_.tuning_query(TunedCall::kCombine, handle.num_tokens));
  const bool bulk = choice.bulk && can_sum_in_bulk(args);
  args.tuning = {.num_blocks = choice.num_blocks, .push_blocks = choice.peer_blocks, .bulk = bulk};
  check_cuda(bulk ? launch_sum_bulk(args, context_.stream) : launch_sum(args, context_.stream), "launching combine");
}

WireBytes DirectTransport::wire_bytes(const CudaHandleState& handle) const {
  return wire_bytes_of(context_.plan, handle.stats);
}

void check_direct(const ResolvedConfig& config, const DeviceOptions& options, const Group& group) {
  const auto& cuda_options = std::get<CudaOptions>(options);
  check_cuda_options(config, options, group);
  if (cuda_options.mover != CudaMover::kCopyEngines) return;
  if (CopyEngines::can_serve(to_layout_params(config, group.size()))) return;
  throw Error(ErrorCode::kUnsupported,
              fmt::format("copy engines move rows of layout token_major under exact sizing with one buffer and scales "
                          "in rows only; this is {}, {} and {} buffers: use another mover",
                          to_string(config.layout), to_string(config.sizing), config.num_buffers));
}

std::unique_ptr<DispatcherImpl> create_direct(const Creation& creation) {
  return create_cuda_engine(creation, direct_rules(), make_transport<DirectTransport>);
}

}  // namespace epistle::cuda
