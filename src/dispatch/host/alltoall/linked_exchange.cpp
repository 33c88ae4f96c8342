#include "dispatch/host/alltoall/linked_exchange.hpp"

#include <cstring>

#include "dispatch/host/alltoall/row_runs.hpp"

namespace epistle::host {

LinkedExchange::LinkedExchange(HostContext& context)
    : context_(context),
      traffic_(*context.group, context.domains(), *context.link, context.plan, context.memory),
      places_(context) {}

void LinkedExchange::put(const Part& part, const RouteTo& route_to) {
  for (int step = 0; step < context_.num_ranks; ++step) {
    // Every rank begins with another one, so that no link waits for the others.
    const int peer = (context_.rank + step) % context_.num_ranks;
    const Route route = route_to(peer);
    if (route.rows.num_rows == 0) continue;
    if (is_linked(peer)) {
      traffic_.put({.peer = peer,
                    .from = part.from,
                    .from_buffer = context_.buffer_of[static_cast<std::size_t>(context_.rank)],
                    .to = part.to,
                    .from_row = route.rows.begin,
                    .to_row = route.target_begin,
                    .num_rows = route.rows.num_rows,
                    .row_bytes = part.row_bytes});
      continue;
    }
    context_.copy_block({.source = context_.own_section(part.from) + route.rows.begin * part.row_bytes,
                         .target = context_.section(peer, part.to) + route.target_begin * part.row_bytes,
                         .num_rows = route.rows.num_rows,
                         .row_bytes = part.row_bytes,
                         .mode = context_.store_mode(route.rows.num_rows * part.row_bytes)});
  }
}

void LinkedExchange::tell(const RouteTo& route_to) {
  for (int peer = 0; peer < context_.num_ranks; ++peer) {
    if (is_linked(peer) && route_to(peer).rows.num_rows > 0) traffic_.signal(peer);
  }
}

void LinkedExchange::wait(const std::function<Segment(int peer)>& rows_from, Phase phase,
                          const MissingRows& missing_rows) {
  for (int step = 1; step < context_.num_ranks; ++step) {
    // Those that began with this rank first.
    const int peer = (context_.rank + context_.num_ranks - step) % context_.num_ranks;
    if (!is_linked(peer) || rows_from(peer).num_rows == 0) continue;
    traffic_.wait_for(peer, 1, phase, missing_rows);
    traffic_.take(peer, 1);
  }
  traffic_.flush(phase, missing_rows);
}

void LinkedExchange::exchange_records(const HostHandle& handle, const std::vector<std::int64_t>& packed_begin) {
  const std::int64_t record_bytes = context_.layout().record_bytes();
  std::byte* const packed = context_.own_section(BufferSection::kSendRows);
  places_.write_records(handle, context_.rank, [&](int dst_rank, std::int32_t column, std::int32_t row) {
    if (!is_linked(dst_rank)) return context_.memory.section(dst_rank, BufferSection::kRecords) + row * record_bytes;
    const std::int64_t begin = packed_begin[static_cast<std::size_t>(column)];
    return packed + (begin + row - handle.tables.row_begin(context_.rank, column)) * record_bytes;
  });
  const PackedRows rows(context_.layout(), handle);
  const RouteTo route_to = [&](int peer) {
    if (!is_linked(peer)) return Route{};  // its records are there
    return Route{.rows = rows.sent(context_.rank, peer), .target_begin = rows.received_begin(context_.rank, peer)};
  };
  put({.row_bytes = record_bytes}, route_to);
  tell(route_to);
  wait([&](int peer) { return rows.sent(peer, context_.rank); }, Phase::kLayout);
  unpack_records(handle);
}

void LinkedExchange::unpack_records(const HostHandle& handle) {
  const std::int64_t record_bytes = context_.layout().record_bytes();
  const std::byte* const received = context_.own_section(BufferSection::kStageRows);
  std::byte* const records = context_.memory.section(context_.rank, BufferSection::kRecords);
  for_each_run(context_.layout(), handle, context_.rank, [&](const RowRun& run) {
    if (!is_linked(run.src_rank)) return;
    std::memcpy(records + run.output_begin * record_bytes, received + run.received_begin * record_bytes,
                static_cast<std::size_t>(run.num_rows * record_bytes));
  });
}

}  // namespace epistle::host
