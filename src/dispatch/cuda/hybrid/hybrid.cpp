#include "dispatch/cuda/hybrid/hybrid.hpp"

#include <algorithm>
#include <utility>

#include "dispatch/cuda/direct/direct.hpp"
#include "dispatch/cuda/engine/cuda_functions.hpp"
#include "dispatch/cuda/engine/owed_rows.hpp"
#include "dispatch/cuda/hybrid/hybrid_info.hpp"
#include "gpu/cuda_error.hpp"

namespace epistle::cuda {
namespace {

/// The steps of a call behind that in which the engine has the ranks agree on it.
constexpr Call kStartCall{.kind = CallKind::kGpuCall, .step = 1};
constexpr Call kEndCall{.kind = CallKind::kGpuCall, .step = 2};

}  // namespace

HybridTransport::HybridTransport(EngineContext& context)
    : context_(context),
      links_(*context.group, context.config, context.device),
      routes_(context, links_),
      num_forwarded_(static_cast<std::size_t>(context.group->gpu_domains().count()), 0) {
  context.group->take_together(kGpuSetUp, Phase::kCreate, [this] {
    const DeviceGuard guard(context_.device);
    check_cuda(load_hybrid_kernels(), "loading the kernels");
    routes_.take_memory();
  });
}

int HybridTransport::num_blocks(TunedCall call, const CudaHandleState& handle) const {
  return choose(context_.tuning_query(call, handle.num_tokens)).num_blocks;
}

void HybridTransport::raise_demands(CudaHandleState& handle, std::vector<RowDemand>& demands) {
  const DomainPairs& pairs = routes_.learn(handle).pairs();
  for (int peer = 0; peer < context_.num_ranks(); ++peer) {
    demands[static_cast<std::size_t>(peer)].tokens = pairs.num_own(peer);
  }
}

// ---- Steps ----------------------------------------------------------------------------------------------------------

template <typename Work>
DomainBuffers HybridTransport::start_call(BufferSection section, std::int32_t buffer, Phase phase, const Work& work) {
  const Complaint complaint = attempt([&] {
    work();
    context_.wait();
  });
  const std::vector<std::int32_t> buffers = context_.group->gather(kStartCall, phase, buffer, complaint);
  DomainBuffers all{.group = context_.device_group, .section = section, .copy = {}};
  for (std::size_t peer = 0; peer < buffers.size(); ++peer) all.copy[peer] = static_cast<std::int8_t>(buffers[peer]);
  return all;
}

void HybridTransport::end_call(const Awaited& awaited, Complaint complaint) {
  links_.traffic().flush(awaited.phase, awaited.missing);
  const Complaint of_stream = attempt([&] {
    links_.settle();
    context_.wait();
  });
  if (!complaint) complaint = of_stream;
  (void)context_.group->agree(kEndCall, awaited.phase, complaint, &awaited.missing);
}

// ---- Dispatch -------------------------------------------------------------------------------------------------------

void HybridTransport::start_move(const CudaHandleState& handle, MoveArgs& args) {
  args.tuning.num_blocks = num_blocks(TunedCall::kDispatch, handle);
  if ((args.phases & kSendPhase) != 0) move_across(handle, args);
  if ((args.phases & kReceivePhase) != 0 && (args.zero_padding || !context_.layout().token_major())) {
    check_cuda(launch_complete_rows(args, context_.stream), "launching the placing of rows");
  }
}

void HybridTransport::move_across(const CudaHandleState& handle, const MoveArgs& args) {
  const Phase phase = args.target == BufferSection::kCombineRows ? Phase::kCombine : Phase::kDispatch;
  const RouteTables& tables = routes_.learn(handle);
  const DomainPairs& pairs = tables.pairs();
  const RouteArrays* arrays = nullptr;
  const DomainBuffers buffers = start_call(args.target, args.buffer, phase, [&] {
    // What links take and bring, and the tables, may still be read by the call before.
    context_.wait();
    arrays = &routes_.bring(handle, tables);
    PackRowsArgs pack;
    pack.tokens = arrays->sent_tokens;
    pack.count = pairs.num_sent(context_.rank());
    pack.rows = args.rows;
    pack.scales = args.scales;
    pack.strides = args.strides;
    pack.row_bytes = args.row_bytes;
    pack.scale_bytes = args.scale_bytes;
    pack.out_rows = links_.section(BufferSection::kSendRows);
    pack.out_scales = links_.section(BufferSection::kSendScales);
    pack.num_blocks = args.tuning.num_blocks;
    if (pack.count > 0) check_cuda(launch_pack_rows(pack, context_.stream), "launching the packing of rows");
  });
  ForwardRowsArgs own;
  own.to = buffers;
  own.top_k = context_.layout().params().top_k;
  own.terms = arrays->terms + pairs.num_received(context_.rank()) * own.top_k;
  own.count = pairs.num_own(context_.rank());
  own.tokens = arrays->own_tokens;
  own.rows = args.rows;
  own.scales = args.scales;
  own.strides = args.strides;
  own.row_bytes = args.row_bytes;
  own.scale_bytes = args.scale_bytes;
  own.num_blocks = args.tuning.num_blocks;
  // From here on the others wait for what this rank puts on links: it goes on whatever its GPU says, and tells them in
  // the end.
  Complaint complaint = attempt([&] { forward(own); });
  const auto forward_chunk = [&](int domain, const Chunk& chunk) {
    if (complaint) return;
    const std::int64_t first = pairs.first_received(context_.rank(), domain) + chunk.begin;
    ForwardRowsArgs landed = own;
    landed.terms = arrays->terms + first * own.top_k;
    landed.count = chunk.end - chunk.begin;
    landed.tokens = nullptr;
    landed.rows = links_.section(BufferSection::kStageRows) + first * args.row_bytes;
    landed.scales = links_.section(BufferSection::kStageScales) + first * args.scale_bytes;
    landed.strides = {.row = args.row_bytes,
                      .scale_row = args.scale_bytes,
                      .scale_column = args.strides.scale_element_bytes,
                      .scale_element_bytes = args.strides.scale_element_bytes};
    complaint = attempt([&] {
      links_.settle();
      forward(landed);
    });
  };
  const Awaited awaited{.phase = phase, .missing = rows_to(&handle, context_.rank())};
  send_and_forward(tables, args, awaited, forward_chunk);
  end_call(awaited, std::move(complaint));
}

void HybridTransport::forward(const ForwardRowsArgs& args) {
  if (args.count > 0) check_cuda(launch_forward_rows(args, context_.stream), "launching the passing on of rows");
}

template <typename Forward>
void HybridTransport::send_and_forward(const RouteTables& tables, const MoveArgs& args, const Awaited& awaited,
                                       const Forward& forward_chunk) {
  LinkTraffic& traffic = links_.traffic();
  const DomainPairs& pairs = tables.pairs();
  const int rank = context_.rank();
  const int num_domains = domains().count();
  const int own = own_domain();
  std::fill(num_forwarded_.begin(), num_forwarded_.end(), 0);
  const auto chunks_from = [&](int domain) { return Chunks(pairs.num_received_from(rank, domain), args.row_bytes); };
  const auto forward_arrived = [&](int domain) {
    const Chunks chunks = chunks_from(domain);
    std::int64_t& num_forwarded = num_forwarded_[static_cast<std::size_t>(domain)];
    while (num_forwarded < chunks.count() && traffic.arrived(traffic.peer_in(domain)) > 0) {
      forward_chunk(domain, chunks.at(num_forwarded++));
      traffic.take(traffic.peer_in(domain), 1);
    }
  };
  bool has_more = true;
  for (std::int64_t idx = 0; has_more; ++idx) {
    has_more = false;
    // All domains in turn, each rank beginning with another one, so that no link waits for the others' chunks.
    for (int step = 1; step < num_domains; ++step) {
      const int domain = (own + step) % num_domains;
      const Chunks chunks(pairs.num(rank, domain), args.row_bytes);
      if (idx < chunks.count()) send_chunk(tables, args, domain, chunks.at(idx));
      has_more = has_more || idx + 1 < chunks.count();
    }
    for (int step = 1; step < num_domains; ++step) forward_arrived((own + step) % num_domains);
  }
  for (int step = 1; step < num_domains; ++step) {
    // Those that began with this domain first.
    const int domain = (own + num_domains - step) % num_domains;
    while (num_forwarded_[static_cast<std::size_t>(domain)] < chunks_from(domain).count()) {
      traffic.wait_for(traffic.peer_in(domain), 1, awaited.phase, awaited.missing);
      forward_arrived(domain);
    }
  }
}

void HybridTransport::send_chunk(const RouteTables& tables, const MoveArgs& args, int domain, const Chunk& chunk) {
  LinkTraffic& traffic = links_.traffic();
  const DomainPairs& pairs = tables.pairs();
  LinkTraffic::Put rows{.peer = traffic.peer_in(domain),
                        .from_row = pairs.first_sent(context_.rank(), domain) + chunk.begin,
                        .to_row = pairs.first_received(traffic.peer_in(domain), own_domain()) + chunk.begin,
                        .num_rows = chunk.end - chunk.begin,
                        .row_bytes = args.row_bytes};
  traffic.put(rows);
  if (args.scale_bytes > 0) {
    rows.from = BufferSection::kSendScales;
    rows.to = BufferSection::kStageScales;
    rows.row_bytes = args.scale_bytes;
    traffic.put(rows);
  }
  traffic.signal(traffic.peer_in(domain));
}

// ---- Combine --------------------------------------------------------------------------------------------------------

void HybridTransport::start_sum(const CudaHandleState& handle, SumArgs& args) {
  args.tuning.num_blocks = num_blocks(TunedCall::kCombine, handle);
  if ((args.phases & kSendPhase) != 0) sum_pairs(handle, args);
  if ((args.phases & kReceivePhase) == 0 || handle.num_tokens == 0) return;
  const RouteArrays& arrays = routes_.bring(handle, routes_.learn(handle));
  SumDomainsArgs sums;
  sums.sums = {.token_rows = arrays.token_rows,
               .slots = static_cast<std::int32_t>(context_.layout().max_domains_per_token()),
               .own_domain = own_domain(),
               .own = context_.own_section(BufferSection::kStageRows),
               .landed = links_.section(BufferSection::kStageRows)};
  sums.num_tokens = handle.num_tokens;
  sums.dtype = args.dtype;
  sums.row_bytes = context_.layout().params().combine_row_bytes;
  sums.out = args.out;
  sums.out_stride = args.out_stride;
  sums.num_blocks = args.tuning.num_blocks;
  check_cuda(launch_sum_domains(sums, context_.stream), "launching the sums over domains");
}

void HybridTransport::sum_pairs(const CudaHandleState& handle, const SumArgs& args) {
  const RouteTables& tables = routes_.learn(handle);
  const DomainPairs& pairs = tables.pairs();
  const DispatchLayout& layout = context_.layout();
  const RouteArrays* arrays = nullptr;
  const DomainBuffers buffers = start_call(BufferSection::kCombineRows, args.buffer, Phase::kCombine, [&] {
    context_.wait();
    arrays = &routes_.bring(handle, tables);
  });
  const Complaint complaint = attempt([&] {
    SumPairsArgs sums;
    sums.from = buffers;
    sums.top_k = layout.params().top_k;
    sums.terms = arrays->terms;
    sums.count = pairs.num_received(context_.rank());
    sums.dtype = args.dtype;
    sums.weighted = args.weighted;
    sums.rounds_ranks = !layout.token_major();
    sums.row_bytes = layout.params().combine_row_bytes;
    sums.out = links_.section(BufferSection::kSendRows);
    sums.num_blocks = args.tuning.num_blocks;
    if (sums.count > 0) check_cuda(launch_sum_pairs(sums, context_.stream), "launching the sums of a domain");
    context_.wait();
    // While those are on links.
    sums.terms = arrays->terms + sums.count * sums.top_k;
    sums.count = pairs.num_own(context_.rank());
    sums.out = context_.own_section(BufferSection::kStageRows);
    if (sums.count > 0) check_cuda(launch_sum_pairs(sums, context_.stream), "launching the sums of a domain");
  });
  const Awaited awaited{.phase = Phase::kCombine, .missing = rows_back_to(&handle, context_.rank())};
  return_rows(tables, {.row_bytes = layout.params().combine_row_bytes}, awaited);
  end_call(awaited, complaint);
}

/// Whatever this rank's GPU has said: the others wait for as many chunks.
void HybridTransport::return_rows(const RouteTables& tables, const ReturnedRows& what, const Awaited& awaited) {
  LinkTraffic& traffic = links_.traffic();
  const DomainPairs& pairs = tables.pairs();
  const int rank = context_.rank();
  const int num_domains = domains().count();
  const int own = own_domain();
  for (int step = 1; step < num_domains; ++step) {
    const int domain = (own + step) % num_domains;
    const Chunks chunks(pairs.num_received_from(rank, domain), what.row_bytes);
    for (std::int64_t idx = 0; idx < chunks.count(); ++idx) {
      const Chunk chunk = chunks.at(idx);
      traffic.put({.peer = traffic.peer_in(domain),
                   .from = what.from,
                   .to = what.to,
                   .from_row = pairs.first_received(rank, domain) + chunk.begin,
                   .to_row = pairs.first_sent(traffic.peer_in(domain), own) + chunk.begin,
                   .num_rows = chunk.end - chunk.begin,
                   .row_bytes = what.row_bytes});
      traffic.signal(traffic.peer_in(domain));
    }
  }
  for (int step = 1; step < num_domains; ++step) {
    const int domain = (own + num_domains - step) % num_domains;
    const std::int64_t num_chunks = Chunks(pairs.num(rank, domain), what.row_bytes).count();
    traffic.wait_for(traffic.peer_in(domain), num_chunks, awaited.phase, awaited.missing);
    traffic.take(traffic.peer_in(domain), num_chunks);
  }
}

bool HybridTransport::bring_weight_gradients(const CudaHandleState& handle, const WeightGradientArgs& args) {
  const RouteTables& tables = routes_.learn(handle);
  const DomainPairs& pairs = tables.pairs();
  const DispatchLayout& layout = context_.layout();
  const std::int32_t top_k = layout.params().top_k;
  const RouteArrays* arrays = nullptr;
  // The gradients of the weights have one copy.
  static_cast<void>(start_call(BufferSection::kGradWeights, 0, Phase::kCombine, [&] {
    context_.wait();
    arrays = &routes_.bring(handle, tables);
  }));
  const Complaint complaint = attempt([&] {
    GatherGradientsArgs gather;
    gather.group = context_.device_group;
    gather.places = arrays->places;
    gather.top_k = top_k;
    gather.count = pairs.num_received(context_.rank());
    gather.token_major = layout.token_major();
    gather.out = reinterpret_cast<float*>(links_.section(BufferSection::kSendScales));
    gather.num_blocks = args.num_blocks;
    if (gather.count > 0) {
      check_cuda(launch_gather_gradients(gather, context_.stream), "launching the gathering of gradients");
    }
    context_.wait();
    gather.places = arrays->places + gather.count * top_k;
    gather.count = pairs.num_own(context_.rank());
    gather.out = reinterpret_cast<float*>(context_.own_section(BufferSection::kStageScales));
    if (gather.count > 0) {
      check_cuda(launch_gather_gradients(gather, context_.stream), "launching the gathering of gradients");
    }
  });
  const Awaited awaited{.phase = Phase::kCombine, .missing = rows_back_to(&handle, context_.rank())};
  return_rows(tables,
              {.from = BufferSection::kSendScales,
               .to = BufferSection::kStageScales,
               .row_bytes = top_k * static_cast<std::int64_t>(sizeof(float))},
              awaited);
  end_call(awaited, complaint);
  if (args.grad_topk_weights == nullptr || handle.num_tokens == 0) return true;
  PlaceGradientsArgs place;
  place.gradients = {.token_rows = arrays->token_rows,
                     .slots = static_cast<std::int32_t>(layout.max_domains_per_token()),
                     .own_domain = own_domain(),
                     .own = reinterpret_cast<const float*>(context_.own_section(BufferSection::kStageScales)),
                     .landed = reinterpret_cast<const float*>(links_.section(BufferSection::kStageScales))};
  place.handle = handle.arrays;
  place.partition = layout.partition();
  place.domain_size = domains().size();
  place.out = args.grad_topk_weights;
  place.num_blocks = args.num_blocks;
  check_cuda(launch_place_gradients(place, context_.stream), "launching the placing of gradients");
  return true;
}

// ---- How it is made -------------------------------------------------------------------------------------------------

std::unique_ptr<DispatcherImpl> create_hybrid(const Creation& creation) {
  return create_cuda_engine(creation, hybrid_rules(), [](EngineContext& context) {
    return context.plan.crosses_domains() ? make_transport<HybridTransport>(context)
                                          : make_transport<DirectTransport>(context);
  });
}

}  // namespace epistle::cuda
