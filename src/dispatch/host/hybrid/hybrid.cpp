#include "dispatch/host/hybrid/hybrid.hpp"

#include <algorithm>
#include <cstring>

#include "dispatch/host/engine/owed_rows.hpp"
#include "dispatch/host/engine/sums.hpp"
#include "dispatch/host/engine/timeline.hpp"

namespace epistle::host {

HybridMover::HybridMover(HostContext& context)
    : context_(context),
      direct_(context),
      traffic_(*context.group, context.domains(), *context.link, context.plan, context.memory),
      exchange_(context, traffic_),
      num_forwarded_(context.peers.sources().size(), 0),
      num_seen_(context.peers.sources().size(), 0) {}

void HybridMover::renew() {
  traffic_.restart(*context_.link);
  num_forwarded_.assign(context_.peers.sources().size(), 0);
  num_seen_.assign(context_.peers.sources().size(), 0);
}

// ---- Dispatch -------------------------------------------------------------------------------------------------------

void HybridMover::send_rows(const MoveJob& job) {
  const int num_domains = traffic_.domains().count();
  const int own = traffic_.own_domain();
  const SourceOrder sources(context_);
  const DomainRoutes& routes = routes_of(*job.handle);
  std::fill(num_forwarded_.begin(), num_forwarded_.end(), 0);
  std::fill(num_seen_.begin(), num_seen_.end(), 0);
  bool has_more = true;
  for (std::int64_t idx = 0; has_more; ++idx) {
    has_more = false;
    // All domains in turn, each rank beginning with another one, so that no link waits for the others' chunks.
    for (int step = 1; step < num_domains; ++step) {
      const int domain = (own + step) % num_domains;
      const auto num_rows = static_cast<std::int64_t>(routes.sent[static_cast<std::size_t>(domain)].size());
      const Chunks chunks(num_rows, job.row_bytes);
      if (idx < chunks.count()) {
        const TimelineSpan span(TimelineWork::kPack, domain, idx);
        send_chunk(job, domain, chunks.at(idx));
      }
      has_more = has_more || idx + 1 < chunks.count();
    }
    for (std::size_t step = 1; step < sources.count(); ++step) forward_arrived(job, sources.behind(step));
  }
  // While the last chunks are on their way.
  const TimelineSpan span(TimelineWork::kOwn, own, 0);
  const auto num_own = static_cast<std::int64_t>(routes.received[sources.own()].size());
  forward(job, sources.own(), {.begin = 0, .end = num_own});
}

void HybridMover::send_chunk(const MoveJob& job, int domain, const Chunk& chunk) {
  const HostHandle& handle = *job.handle;
  const PairRun& run = handle.sent_pairs[static_cast<std::size_t>(domain)];
  const std::vector<std::int32_t>& tokens = routes_of(handle).sent[static_cast<std::size_t>(domain)];
  const std::int64_t first = run.first_sent + chunk.begin;
  const std::int64_t first_there = run.first_passed + chunk.begin;
  std::byte* const rows = context_.own_section(BufferSection::kSendRows) + first * job.row_bytes;
  std::byte* const scales = context_.own_section(BufferSection::kSendScales) + first * job.scale_bytes;
  const WireRows wire_rows(context_, job);
  const std::int64_t num_rows = chunk.end - chunk.begin;
  context_.pool.parallel_for(num_rows, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t idx = begin; idx < end; ++idx) {
      wire_rows.write(tokens[static_cast<std::size_t>(chunk.begin + idx)], rows + idx * job.row_bytes,
                      scales + idx * job.scale_bytes, StoreMode::kCached);
    }
  });
  traffic_.put(
      {.peer = run.peer, .from_row = first, .to_row = first_there, .num_rows = num_rows, .row_bytes = job.row_bytes});
  if (job.scale_bytes > 0) {
    traffic_.put({.peer = run.peer,
                  .from = BufferSection::kSendScales,
                  .to = BufferSection::kStageScales,
                  .from_row = first,
                  .to_row = first_there,
                  .num_rows = num_rows,
                  .row_bytes = job.scale_bytes});
  }
  traffic_.signal(run.peer);
}

Chunks HybridMover::chunks_to_forward(const MoveJob& job, std::size_t source) const noexcept {
  const auto num_rows = routes_of(*job.handle).received[source].size();
  return {static_cast<std::int64_t>(num_rows), job.row_bytes};
}

/// Those chunks of a source that are there.
void HybridMover::forward_arrived(const MoveJob& job, std::size_t source) {
  const Chunks chunks = chunks_to_forward(job, source);
  const int peer = job.handle->passed_pairs[source].peer;
  std::int64_t& num_forwarded = num_forwarded_[source];
  if (timeline_of_thread() != nullptr && num_forwarded < chunks.count()) note_arrivals(source, peer);
  while (num_forwarded < chunks.count() && traffic_.arrived(peer) > 0) {
    const TimelineSpan span(TimelineWork::kForward, traffic_.domains().domain_of(peer), num_forwarded);
    forward(job, source, chunks.at(num_forwarded));
    traffic_.take(peer, 1);
    ++num_forwarded;
  }
}

/// For a timeline: those chunks that have come since somebody looked.
void HybridMover::note_arrivals(std::size_t source, int peer) {
  std::int64_t& num_seen = num_seen_[source];
  const std::int64_t num_arrived = num_forwarded_[source] + traffic_.arrived(peer);
  const int domain = traffic_.domains().domain_of(peer);
  for (; num_seen < num_arrived; ++num_seen) const TimelineSpan now(TimelineWork::kArrived, domain, num_seen);
}

/// Passes rows that came from a source on to the ranks of this domain.
void HybridMover::forward(const MoveJob& job, std::size_t source, const Chunk& chunk) {
  const HostHandle& handle = *job.handle;
  const PairRun& run = handle.passed_pairs[source];
  const bool is_own = run.peer == context_.rank;
  const TokenTable& table = routes_of(handle).tables[source];
  const std::vector<std::int32_t>& tokens = routes_of(handle).received[source];
  const std::byte* const rows = context_.own_section(BufferSection::kStageRows) + run.first_passed * job.row_bytes;
  const std::byte* const scales =
      context_.own_section(BufferSection::kStageScales) + run.first_passed * job.scale_bytes;
  const WireRows own_rows(context_, job);
  const StoreMode mode = context_.store_mode(static_cast<std::int64_t>(table.sends.size()) * job.row_bytes);
  context_.pool.parallel_for(chunk.end - chunk.begin, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t idx = chunk.begin + begin; idx < chunk.begin + end; ++idx) {
      const auto entry = static_cast<std::size_t>(tokens[static_cast<std::size_t>(idx)]);
      const WireRow row = is_own ? own_rows.at(table.token_number(entry))
                                 : WireRow{rows + idx * job.row_bytes, scales + idx * job.scale_bytes};
      write_to_places(context_, job, table, entry, row, mode);
    }
    store_fence();
  });
}

void HybridMover::receive_rows(const MoveJob& job) {
  const SourceOrder sources(context_);
  const MissingRows missing = rows_to(job.handle, context_.rank);
  for (std::size_t step = 1; step < sources.count(); ++step) {
    // Those that began with this domain first.
    const std::size_t source = sources.before(step);
    const std::int64_t num_chunks = chunks_to_forward(job, source).count();
    while (num_forwarded_[source] < num_chunks) {
      traffic_.wait_for(job.handle->passed_pairs[source].peer, 1, job.phase, missing);
      forward_arrived(job, source);
    }
  }
  traffic_.flush(job.phase, missing);
  // The rows of this rank are there when all of its domain have passed theirs on.
  (void)context_.group->agree(job.forwarded, job.phase, std::nullopt, &missing);
  const TimelineSpan span(TimelineWork::kReceive, traffic_.own_domain(), 0);
  direct_.receive_rows(job);
}

// ---- Combine --------------------------------------------------------------------------------------------------------

void HybridMover::receive_sums(const SumRequest& request) {
  const HostHandle& handle = *request.handle;
  const int num_domains = traffic_.domains().count();
  const int own = traffic_.own_domain();
  const SourceOrder sources(context_);
  const MissingRows missing = rows_back_to(&handle, context_.rank);
  for (std::size_t step = 1; step < sources.count(); ++step) return_sums(request, sources.behind(step));
  const auto num_own = static_cast<std::int64_t>(routes_of(handle).received[sources.own()].size());
  sum_pairs(request, sources.own(), {.begin = 0, .end = num_own},
            {.rows = BufferSection::kStageRows,
             .gradients = BufferSection::kStageScales,
             .first_pair = handle.passed_pairs[sources.own()].first_sent});
  for (int step = 1; step < num_domains; ++step) {
    const int domain = (own + num_domains - step) % num_domains;
    const auto num_rows = static_cast<std::int64_t>(routes_of(handle).sent[static_cast<std::size_t>(domain)].size());
    const std::int64_t num_chunks = Chunks(num_rows, context_.layout().params().combine_row_bytes).count();
    if (num_chunks == 0) continue;
    const int peer = handle.sent_pairs[static_cast<std::size_t>(domain)].peer;
    traffic_.wait_for(peer, num_chunks, Phase::kCombine, missing);
    traffic_.take(peer, num_chunks);
  }
  sum_domains(request);
  if (request.grad_probs != nullptr) place_gradients(request);
  traffic_.flush(Phase::kCombine, missing);
}

/// The sums of a source's tokens over the ranks of this domain, chunk by chunk.
void HybridMover::return_sums(const SumRequest& request, std::size_t source) {
  const HostHandle& handle = *request.handle;
  const PairRun& run = handle.passed_pairs[source];
  const std::int64_t row_bytes = context_.layout().params().combine_row_bytes;
  const std::int64_t gradient_bytes = context_.config.top_k * static_cast<std::int64_t>(sizeof(float));
  const auto num_rows = static_cast<std::int64_t>(routes_of(handle).received[source].size());
  const Chunks chunks(num_rows, row_bytes);
  for (std::int64_t idx = 0; idx < chunks.count(); ++idx) {
    const Chunk chunk = chunks.at(idx);
    sum_pairs(
        request, source, chunk,
        {.rows = BufferSection::kSendRows, .gradients = BufferSection::kSendScales, .first_pair = run.first_passed});
    LinkTraffic::Put sums{.peer = run.peer,
                          .from_row = run.first_passed + chunk.begin,
                          .to_row = run.first_sent + chunk.begin,
                          .num_rows = chunk.end - chunk.begin,
                          .row_bytes = row_bytes};
    traffic_.put(sums);
    if (request.brings_gradients) {
      sums.from = BufferSection::kSendScales;
      sums.to = BufferSection::kStageScales;
      sums.row_bytes = gradient_bytes;
      traffic_.put(sums);
    }
    traffic_.signal(run.peer);
  }
}

void HybridMover::sum_pairs(const SumRequest& request, std::size_t source, const Chunk& chunk, const PairSums& target) {
  const HostHandle& handle = *request.handle;
  const TokenTable& table = routes_of(handle).tables[source];
  const std::vector<std::int32_t>& tokens = routes_of(handle).received[source];
  const std::int64_t row_bytes = context_.layout().params().combine_row_bytes;
  const auto top_k = static_cast<std::size_t>(context_.config.top_k);
  std::byte* const sums = context_.own_section(target.rows) + target.first_pair * row_bytes;
  auto* const gradients = reinterpret_cast<float*>(context_.own_section(target.gradients)) +
                          target.first_pair * static_cast<std::int64_t>(top_k);
  const auto row_of_send = [&](std::size_t at) {
    return context_.output_row(table.sends[at].dst_rank, table.sends[at].row);
  };
  const auto row_of_entry = [&](std::size_t entry) {
    return context_.output_row(context_.rank_of_entry(table, entry), table.dst_row[entry]);
  };
  context_.pool.parallel_for(chunk.end - chunk.begin, [&](std::int64_t begin, std::int64_t end) {
    TermList& list = TermList::of_thread();
    for (std::int64_t idx = chunk.begin + begin; idx < chunk.begin + end; ++idx) {
      const auto entry = static_cast<std::size_t>(tokens[static_cast<std::size_t>(idx)]);
      if (context_.layout().token_major()) {
        list_token_terms(SumOrder::kDomains, table, entry, row_of_send, list);
      } else {
        list_expert_terms(SumOrder::kDomains, top_k, table, entry, row_of_entry, list);
      }
      sum_rows({.terms = list.terms(),
                .group_ends = list.group_ends(),
                .weighted = request.weighted,
                .dtype = context_.config.combine_dtype,
                .out = sums + idx * row_bytes,
                .num_bytes = static_cast<std::size_t>(row_bytes),
                .mode = StoreMode::kCached});
      if (request.brings_gradients) {
        gather_weight_gradients(context_, table, {.begin = entry * top_k, .end = (entry + 1) * top_k},
                                gradients + idx * static_cast<std::int64_t>(top_k));
      }
    }
  });
}

/// The last step: what every domain has for a token.
void HybridMover::sum_domains(const SumRequest& request) {
  const HostHandle& handle = *request.handle;
  const DomainRoutes& routes = routes_of(handle);
  const std::int64_t row_bytes = context_.layout().params().combine_row_bytes;
  const std::byte* const sums = context_.own_section(BufferSection::kStageRows);
  const SumRequest unweighted{
      .handle = request.handle, .weighted = false, .out = request.out, .out_stride = request.out_stride};
  context_.pool.parallel_for(handle.num_tokens, [&](std::int64_t begin, std::int64_t end) {
    TermList& list = TermList::of_thread();
    for (std::int64_t token = begin; token < end; ++token) {
      const auto t = static_cast<std::size_t>(token);
      list.clear();
      for (auto idx = static_cast<std::size_t>(routes.pair_begin[t]);
           idx < static_cast<std::size_t>(routes.pair_begin[t + 1]); ++idx) {
        list.append(routes.domain_of_pair[idx], {.row = sums + routes.pair_of[idx] * row_bytes, .weight = 1.0F});
      }
      sum_rows(sum_job(context_, unweighted, list, token));
    }
    store_fence();
  });
}

void HybridMover::place_gradients(const SumRequest& request) const {
  const HostHandle& handle = *request.handle;
  const DomainRoutes& routes = routes_of(handle);
  const auto top_k = static_cast<std::size_t>(context_.config.top_k);
  const auto* const gradients = reinterpret_cast<const float*>(context_.own_section(BufferSection::kStageScales));
  std::fill(request.grad_probs, request.grad_probs + handle.dst_row.size(), 0.0F);
  for (std::size_t token = 0; token + 1 < routes.pair_begin.size(); ++token) {
    for (auto idx = static_cast<std::size_t>(routes.pair_begin[token]);
         idx < static_cast<std::size_t>(routes.pair_begin[token + 1]); ++idx) {
      const float* const of_pair = gradients + static_cast<std::size_t>(routes.pair_of[idx]) * top_k;
      for (std::size_t position = 0; position < top_k; ++position) {
        const std::size_t entry = token * top_k + position;
        const bool is_here = handle.dst_row[entry] >= 0 && context_.domains().domain_of(context_.rank_of_entry(
                                                               handle, entry)) == routes.domain_of_pair[idx];
        if (is_here) request.grad_probs[entry] = of_pair[position];
      }
    }
  }
}

}  // namespace epistle::host
