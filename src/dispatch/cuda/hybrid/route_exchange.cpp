#include "dispatch/cuda/hybrid/route_exchange.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <utility>

#include "gpu/cuda_error.hpp"

namespace epistle::cuda {
namespace {

/// The step in which ranks tell each other how many pairs they have.
constexpr Call kTellPairs{.kind = CallKind::kPrepare};

struct PairCounts {
  std::array<std::int32_t, kMaxRanks> of_domain{};
};

}  // namespace

RouteExchange::RouteExchange(EngineContext& context, LinkBuffers& links) : context_(context), links_(links) {}

void RouteExchange::take_memory() {
  const DispatchLayout& layout = context_.layout();
  const auto carve_tables = [&](BufferCarver& carver) { carve_routes(carver, layout, arrays_); };
  place_memory_ = PinnedMemory::carve([&](BufferCarver& carver) { carve_places(carver, layout, places_); });
  memory_ = context_.own_memory.carve(carve_tables);
  staging_ = PinnedMemory(carved_bytes(carve_tables));
}

TokenPlacesView RouteExchange::read_places(const CudaHandleState& handle) const {
  const auto count =
      static_cast<std::size_t>(handle.num_tokens) * static_cast<std::size_t>(context_.layout().params().top_k);
  const auto read = [&](void* to, const void* from) {
    if (count == 0) return;
    check_cuda(cudaMemcpyAsync(to, from, count * sizeof(std::int32_t), cudaMemcpyDeviceToHost, context_.stream),
               "reading the places of rows");
  };
  static_assert(sizeof(std::int32_t) == sizeof(float));
  read(places_.expert_ids, handle.arrays.expert_ids);
  read(places_.rows, handle.arrays.dst_row);
  read(places_.weights, handle.arrays.weights);
  context_.wait();
  return {.num_tokens = handle.num_tokens,
          .expert_ids = {places_.expert_ids, count},
          .rows = {places_.rows, count},
          .weights = {places_.weights, count}};
}

const RouteTables& RouteExchange::learn(const CudaHandleState& handle) {
  Known& known = known_[&handle];
  if (known.prepare_id == handle.prepare_id) return known.tables;
  known.prepare_id = 0;
  TokenPlacesView places;
  RouteTables tables;
  PairCounts own;
  const Complaint complaint = attempt([&] {
    places = read_places(handle);
    tables = RouteTables(context_.layout(), domains(), context_.rank(), places);
    std::copy(tables.counts().begin(), tables.counts().end(), own.of_domain.begin());
  });
  // Behind this step nobody's GPU has work on what links put to any more.
  const std::vector<PairCounts> all = context_.group->gather(kTellPairs, Phase::kLayout, own, complaint);
  std::vector<std::int32_t> counts;
  for (const PairCounts& of_rank : all) {
    counts.insert(counts.end(), of_rank.of_domain.begin(), of_rank.of_domain.begin() + domains().count());
  }
  const DomainPairs pairs(domains(), std::move(counts));
  links_.make_room(pairs);
  tables.set_pairs(pairs);
  exchange_records(tables, places);
  known = {.prepare_id = handle.prepare_id, .tables = std::move(tables)};
  return known.tables;
}

void RouteExchange::exchange_records(RouteTables& tables, const TokenPlacesView& places) {
  LinkTraffic& traffic = links_.traffic();
  const DomainPairs& pairs = tables.pairs();
  const int rank = context_.rank();
  const int own = domains().domain_of(rank);
  const std::int64_t record_bytes = route_record_bytes(context_.layout().params().top_k);
  for (int step = 1; step < domains().count(); ++step) {
    const int domain = (own + step) % domains().count();
    const std::int64_t num_records = pairs.num(rank, domain);
    if (num_records == 0) continue;
    const std::int64_t first = pairs.first_sent(rank, domain);
    tables.write_records(domain, places, links_.host_section(BufferSection::kSendRows) + first * record_bytes);
    traffic.put({.peer = traffic.peer_in(domain),
                 .from_row = first,
                 .to_row = pairs.first_received(traffic.peer_in(domain), own),
                 .num_rows = num_records,
                 .row_bytes = record_bytes,
                 .in_host = true});
    traffic.signal(traffic.peer_in(domain));
  }
  tables.fill_own(places);
  for (int step = 1; step < domains().count(); ++step) {
    const int domain = (own + domains().count() - step) % domains().count();
    if (pairs.num_received_from(rank, domain) == 0) continue;
    traffic.wait_for(traffic.peer_in(domain), 1, Phase::kLayout);
    traffic.take(traffic.peer_in(domain), 1);
    tables.read_records(
        domain, links_.host_section(BufferSection::kStageRows) + pairs.first_received(rank, domain) * record_bytes);
  }
  traffic.flush(Phase::kLayout);
}

const RouteArrays& RouteExchange::bring(const CudaHandleState& handle, const RouteTables& tables) {
  if (brought_ == handle.prepare_id) return arrays_;
  brought_ = 0;
  const auto send = [this](auto* target, const auto& values) {
    const std::ptrdiff_t offset = reinterpret_cast<std::byte*>(target) - memory_.get();
    const auto num_bytes = values.size() * sizeof(values[0]);
    if (num_bytes == 0) return;
    std::copy(values.begin(), values.end(), reinterpret_cast<decltype(target)>(staging_.get() + offset));
    check_cuda(cudaMemcpyAsync(target, staging_.get() + offset, num_bytes, cudaMemcpyHostToDevice, context_.stream),
               "bringing the tables of a routing to the GPU");
  };
  send(arrays_.sent_tokens, tables.sent_tokens());
  send(arrays_.own_tokens, tables.own_tokens());
  send(arrays_.terms, tables.terms());
  send(arrays_.places, tables.places());
  send(arrays_.token_rows, tables.token_rows());
  brought_ = handle.prepare_id;
  return arrays_;
}

WireBytes RouteExchange::wire_bytes(const CudaHandleState& handle) const {
  RouteTables fresh;
  const auto known = known_.find(&handle);
  const bool is_known = known != known_.end() && known->second.prepare_id == handle.prepare_id;
  if (!is_known) {
    const DeviceGuard guard(context_.device);
    fresh = RouteTables(context_.layout(), domains(), context_.rank(), read_places(handle));
  }
  const LinkBytes& rows = (is_known ? known->second.tables : fresh).link_rows();
  const auto times = [&rows](std::int64_t row_bytes) {
    return LinkBytes{
        .own = rows.own * row_bytes, .domain = rows.domain * row_bytes, .network = rows.network * row_bytes};
  };
  const LayoutParams& params = context_.layout().params();
  WireBytes bytes{.dispatch_links = times(params.row_bytes + params.scale_bytes),
                  .combine_links = times(params.combine_row_bytes)};
  bytes.dispatch = bytes.dispatch_links.domain + bytes.dispatch_links.network;
  bytes.combine = bytes.combine_links.domain + bytes.combine_links.network;
  bytes.header_bytes = rows.network * route_record_bytes(params.top_k);
  return bytes;
}

}  // namespace epistle::cuda
