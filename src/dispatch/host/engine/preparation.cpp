// From a routing table to a place for every row, on the sender's and the receiver's side.
#include "dispatch/host/engine/preparation.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "dispatch/host/engine/prefetch.hpp"
#include "topology/memory.hpp"

namespace epistle::host {

Preparation::Preparation(HostContext& context, RowMover& mover)
    : context_(&context),
      mover_(&mover),
      layout_(context.layout()),
      config_(context.config),
      published_(context),
      places_(context),
      received_(context),
      expert_tokens_(static_cast<std::size_t>(config_.num_experts)),
      lost_tokens_(static_cast<std::size_t>(config_.num_experts)) {
  const auto ranks = static_cast<std::size_t>(context.num_ranks);
  wanted_.resize(ranks);
  count_views_.resize(ranks);
  last_token_of_expert_.resize(static_cast<std::size_t>(config_.num_experts));
  last_token_to_rank_.resize(ranks);
  lost_of_expert_.resize(static_cast<std::size_t>(config_.num_experts));
  pairs_to_rank_.resize(ranks);
  dropped_of_expert_.resize(static_cast<std::size_t>(layout_.params().num_experts));
  counts_of_nobody_.resize(static_cast<std::size_t>(layout_.counts_entries()));
  if (!context.plan.uses_links()) return;
  const std::int64_t num_pairs = context.plan.crosses_domains() ? layout_.num_domains() : 0;
  const auto entries = static_cast<std::size_t>(layout_.counts_entries() + num_pairs);
  own_announcement_.resize(entries);
  all_announcements_.resize(entries * ranks);
  passed_on_.resize(ranks);
}

void Preparation::finish(HostHandle& state, const Call& call) {
  GroupImpl& group = *context_->group;
  ask_for_lines(state);
  const bool by_domain = context_->plan.crosses_domains();
  if (by_domain) count_domain_pairs(state, own_announcement_.data() + layout_.counts_entries());
  if (context_->plan.uses_links()) gather_counts(state);
  if (by_domain) keep_domain_pairs(state);
  // Whatever this rank needs memory of its own for is had before anything is written to a peer.
  const Complaint complaint = attempt([&] { plan(state); });
  // Whoever waits for records over a link would not hear of it.
  if (complaint || context_->plan.uses_links()) (void)group.agree(call, Phase::kLayout, complaint);
  // Peers write into this rank's records and rows, so these must be committed before anyone goes on.
  context_->grow(wanted_, call, Phase::kLayout);

  place_rows(state);
  received_.open(state, placed_, pairs_to_rank_);
  if (mover_->sends_unagreed()) {
    published_.derive(state, count_views_);
  } else {
    exchange_records(state, call);
  }
  received_.sum_counts(state);
  mover_->plan(state);
  count_expert_tokens(state);
}

void Preparation::count_expert_tokens(const HostHandle& state) noexcept {
  const CountsView<std::int32_t> own = own_counts(state);
  const std::span<const std::int32_t> expert_of_slot = placed_.expert_of_slot();
  for (std::size_t column = 0; column < own.rows_to_expert.size(); ++column) {
    if (own.rows_to_expert[column] == 0) continue;
    const std::size_t expert = placed_.is_trivial() ? column : static_cast<std::size_t>(expert_of_slot[column]);
    // Only this thread writes: adding in one go would lock the line, for each of many experts.
    std::atomic<std::int64_t>& tokens = expert_tokens_[expert];
    tokens.store(tokens.load(std::memory_order_relaxed) + own.rows_to_expert[column], std::memory_order_relaxed);
  }
  if (state.stats.lost_by_this_rank == 0) return;
  for (std::size_t expert = 0; expert < lost_tokens_.size(); ++expert) {
    lost_tokens_[expert].fetch_add(lost_of_expert_[expert], std::memory_order_relaxed);
  }
}

namespace {

std::vector<std::int64_t> read_counters(const std::vector<std::atomic<std::int64_t>>& counters) {
  std::vector<std::int64_t> counts;
  counts.reserve(counters.size());
  for (const auto& counter : counters) counts.push_back(counter.load(std::memory_order_relaxed));
  return counts;
}

}  // namespace

std::vector<std::int64_t> Preparation::expert_tokens() const { return read_counters(expert_tokens_); }
std::vector<std::int64_t> Preparation::lost_tokens() const { return read_counters(lost_tokens_); }

/// Every rank tells the others what it sends them, and what it had to drop.
void Preparation::exchange_records(HostHandle& state, const Call& call) {
  if (context_->plan.uses_links()) {
    mover_->exchange_records(state);
    gather_counts(state);  // nobody has all of them before all have written their records
  } else {
    places_.write_records(state, rank());
    (void)context_->group->agree(call, Phase::kLayout);
  }
  received_.read_counts(state, count_views_, tells_of_drops(state));
  received_.read_records(state);
}

/// Where other domains are out of reach, counts go by way of the group; and with them how many tokens a rank sends to
/// each domain, which is counted already.
void Preparation::gather_counts(const HostHandle& state) {
  const auto num_counts = static_cast<std::size_t>(layout_.counts_entries());
  const std::byte* const own = section(rank(), BufferSection::kControl) + layout_.counts_offset(state.handle_id);
  std::memcpy(own_announcement_.data(), own, num_counts * sizeof(std::int32_t));
  context_->group->all_gather(own_announcement_.data(), own_announcement_.size() * sizeof(std::int32_t),
                              all_announcements_.data(), Phase::kLayout);
}

/// What the others have written for this rank is on its way from their caches, all at once, while its own places are
/// computed.
void Preparation::ask_for_lines(const HostHandle& state) const {
  if (context_->plan.uses_links()) return;
  const bool by_expert = !layout_.token_major();
  const ExpertPartition partition = layout_.partition();
  const auto first = by_expert ? 0 : static_cast<std::size_t>(partition.first_expert(rank()));
  const auto num_local = static_cast<std::size_t>(partition.num_local_experts(rank()));
  for (int peer = 0; peer < num_ranks(); ++peer) {
    if (peer == rank() || context_->group->is_masked(peer)) continue;
    const ConstCountsView counts = counts_view(layout_.params(), told_by(state, peer));
    prefetch_lines(std::as_bytes(counts.tokens_to_rank));
    prefetch_lines(std::as_bytes(counts.num_tokens));
    if (by_expert || !mover_->sends_unagreed()) {
      prefetch_lines(
          std::as_bytes(counts.rows_to_expert.subspan(first, by_expert ? counts.rows_to_expert.size() : num_local)));
    }
    if (mover_->sends_unagreed()) published_.ask_for(peer, state);
  }
}

/// From the counts of all ranks: the tables, what every rank's buffers must hold, and room in the handle.
void Preparation::plan(HostHandle& state) {
  for (int peer = 0; peer < num_ranks(); ++peer) {
    const auto idx = static_cast<std::size_t>(peer);
    count_views_[idx] = counts_view(layout_.params(), told_by(state, peer));
  }
  state.tables.compute(layout_, count_views_, placed_.slots_of_rank());
  check_capacity(state);
  const bool is_static = config_.sizing == SizingMode::kCapacity;
  for (int peer = 0; peer < num_ranks(); ++peer) {
    wanted_[static_cast<std::size_t>(peer)] = is_static ? context_->plan.initial_demand() : demand_of(state, peer);
  }
  state.demand = is_static ? demand_of(state, rank()) : wanted_[static_cast<std::size_t>(rank())];
  reserve_handle(state, {.num_tokens = state.num_tokens,
                         .num_rows = state.tables.output_rows(rank()),
                         .num_pairs = state.demand.send_pairs});
  mover_->reserve(state);
}

/// Where the counts of a rank lie.
const std::int32_t* Preparation::told_by(const HostHandle& state, int peer) const noexcept {
  if (context_->group->is_masked(peer)) return counts_of_nobody_.data();
  if (context_->plan.uses_links()) {
    return &all_announcements_[static_cast<std::size_t>(peer) * own_announcement_.size()];
  }
  return reinterpret_cast<const std::int32_t*>(section(peer, BufferSection::kControl) +
                                               layout_.counts_offset(state.handle_id));
}

CountsView<std::int32_t> Preparation::own_counts(const HostHandle& state) const noexcept {
  std::byte* entries = section(rank(), BufferSection::kControl) + layout_.counts_offset(state.handle_id);
  return counts_view(layout_.params(), reinterpret_cast<std::int32_t*>(entries));
}

// ---- The sender's table ---------------------------------------------------------------------------------------------

Complaint Preparation::read(const PrepareRequest& request, HostHandle& state) {
  const auto top_k = static_cast<std::size_t>(config_.top_k);
  const auto num_tokens = static_cast<std::size_t>(request.expert_ids.num_tokens);
  const std::size_t num_entries = num_tokens * top_k;
  if (num_entries > state.expert_ids.capacity()) {
    require_memory(static_cast<std::int64_t>(num_entries * (sizeof(std::int32_t) + sizeof(float))),
                   "the routing of this rank's tokens");
  }
  if (mover_->sends_unagreed()) published_.take_back(state.exchange, num_entries);
  state.num_tokens = request.expert_ids.num_tokens;
  state.stats = RoutingStats{.num_tokens = state.num_tokens};
  if (request.num_tokens != nullptr) {
    state.stats.num_tokens = std::clamp<std::int64_t>(*request.num_tokens, 0, state.num_tokens);
  }
  state.expert_ids.resize(num_entries);
  state.weights.resize(num_entries);
  if (request.weights.data == nullptr) {
    std::fill(state.weights.begin(), state.weights.end(), 1.0F);
  } else {
    const auto stride = static_cast<std::size_t>(request.weights.stride != 0 ? request.weights.stride : config_.top_k);
    // Rows without gaps in one go: a call for each takes longer than what it copies.
    const bool is_dense = stride == top_k;
    if (is_dense) std::copy_n(request.weights.data, num_tokens * top_k, state.weights.begin());
    for (std::size_t token = 0; token < num_tokens && !is_dense; ++token) {
      std::copy_n(request.weights.data + token * stride, top_k, &state.weights[token * top_k]);
    }
  }
  Complaint complaint = request.expert_ids.type == IdType::kInt32 ? read_ids<std::int32_t>(request, state)
                                                                  : read_ids<std::int64_t>(request, state);
  if (complaint || !mover_->sends_unagreed()) return complaint;
  // Once all have agreed this rank may not fail alone any more.
  state.tables.resize(layout_);
  reserve_handle(state, {.num_tokens = config_.max_tokens,
                         .num_rows = layout_.max_output_rows(),
                         .num_pairs = config_.max_tokens * layout_.max_ranks_per_token()});
  published_.publish(state);
  return std::nullopt;
}

template <typename Id>
Complaint Preparation::read_ids(const PrepareRequest& request, HostHandle& state) {
  const IdsView& ids = request.expert_ids;
  if (placed_.is_trivial()) {
    return read_tokens<Id>(ids, state, [](std::int32_t expert, std::int64_t /*token*/) { return expert; });
  }
  const SlotChooser chooser =
      placed_.chooser(request.step_seed_at != nullptr ? *request.step_seed_at : request.step_seed);
  return read_tokens<Id>(ids, state,
                         [&](std::int32_t expert, std::int64_t token) { return chooser.slot_of(expert, token); });
}

template <typename Id, typename SlotOf>
Complaint Preparation::read_tokens(const IdsView& ids, HostHandle& state, const SlotOf& slot_of) {
  const auto reject = [this](const std::string& message) {
    return Error(ErrorCode::kInvalidArgument, message, {.rank = rank(), .phase = Phase::kLayout});
  };
  CountsView<std::int32_t> own = own_counts(state);
  own.num_tokens[0] = static_cast<std::int32_t>(state.num_tokens);
  std::fill(own.tokens_to_rank.begin(), own.tokens_to_rank.end(), 0);
  std::fill(own.rows_to_expert.begin(), own.rows_to_expert.end(), 0);
  std::fill(last_token_of_expert_.begin(), last_token_of_expert_.end(), -1);
  std::fill(last_token_to_rank_.begin(), last_token_to_rank_.end(), -1);
  if (context_->has_mask) std::fill(lost_of_expert_.begin(), lost_of_expert_.end(), 0);
  const std::int64_t stride = ids.stride != 0 ? ids.stride : config_.top_k;
  std::size_t entry = 0;
  for (std::int64_t token = 0; token < state.stats.num_tokens; ++token) {
    const Id* row = static_cast<const Id*>(ids.data) + token * stride;
    for (std::int32_t position = 0; position < config_.top_k; ++position, ++entry) {
      const Id id = row[position];
      if (id < kNoExpert || id >= config_.num_experts) {
        return reject(fmt::format("expert id {} at token {}, position {}; ids go from 0 to {}, and -1 means no expert",
                                  id, token, position, config_.num_experts - 1));
      }
      const auto expert = static_cast<std::int32_t>(id);
      state.expert_ids[entry] = expert;
      if (expert == kNoExpert) continue;
      std::int64_t& last_token = last_token_of_expert_[static_cast<std::size_t>(expert)];
      if (last_token == token) {
        return reject(
            fmt::format("expert id {} stands twice in the top-k of token {} (again at position {}); an expert may "
                        "be chosen once per token",
                        expert, token, position));
      }
      last_token = token;
      const std::int32_t slot = slot_of(expert, token);
      const auto idx = static_cast<std::size_t>(slot);
      const std::int32_t owner = context_->rank_of_expert[idx];
      if (owner < 0) [[unlikely]] {
        state.expert_ids[entry] = kNoExpert;
        ++state.stats.lost_by_this_rank;
        ++lost_of_expert_[static_cast<std::size_t>(expert)];
        continue;
      }
      state.expert_ids[entry] = slot;
      ++own.rows_to_expert[idx];
      const auto dst = static_cast<std::size_t>(owner);
      if (last_token_to_rank_[dst] == token) continue;
      last_token_to_rank_[dst] = token;
      ++own.tokens_to_rank[dst];
    }
  }
  // Tokens beyond the number go nowhere.
  std::fill(state.expert_ids.begin() + static_cast<std::ptrdiff_t>(entry), state.expert_ids.end(), kNoExpert);
  return std::nullopt;
}

// ---- Places ---------------------------------------------------------------------------------------------------------

void Preparation::check_capacity(const HostHandle& state) const {
  if (config_.overflow == OverflowPolicy::kDrop) return;
  for (int peer = 0; peer < num_ranks(); ++peer) {
    const std::int64_t overflow = state.tables.overflow_rows(peer);
    if (overflow == 0) continue;
    throw Error(
        ErrorCode::kCapacityExceeded,
        fmt::format(
            "rank {} would receive {} rows more than its {} {}; nothing was sent. Raise the capacity, use exact "
            "sizing, or set the overflow policy to drop",
            peer, overflow, layout_.row_limit(),
            config_.layout == OutputLayout::kExpertBlocks ? "rows of expert blocks" : "rows of capacity"),
        {.rank = rank(), .peer_rank = peer, .phase = Phase::kLayout});
  }
}

RowDemand Preparation::demand_of(const HostHandle& state, int rank) const {
  const ConstCountsView& own = count_views_[static_cast<std::size_t>(rank)];
  RowDemand demand{.tokens = own.num_tokens[0], .output_rows = state.tables.output_rows(rank)};
  // Pairs that may still be dropped are counted too: an upper bound that needs no second exchange.
  for (const std::int32_t tokens : own.tokens_to_rank) demand.send_pairs += tokens;
  for (const ConstCountsView& peer : count_views_) {
    demand.receive_pairs += peer.tokens_to_rank[static_cast<std::size_t>(rank)];
  }
  if (context_->plan.crosses_domains()) {
    for (int domain = 0; domain < context_->domains().count(); ++domain) {
      demand.send_rows += domain_pairs_of(rank, domain);
    }
    demand.receive_rows = passed_on_[static_cast<std::size_t>(rank)];
    return demand;
  }
  demand.send_rows = demand.send_pairs;
  demand.receive_rows = demand.receive_pairs;
  if (!context_->plan.sends_per_expert()) return demand;
  demand.send_rows = 0;
  for (int expert = 0; expert < layout_.params().num_experts; ++expert) {
    demand.send_rows += state.tables.num_kept(rank, expert);
  }
  demand.receive_rows = state.tables.content_rows(rank);
  return demand;
}

void Preparation::reserve_handle(HostHandle& state, const HandleSizes& sizes) const {
  const auto top_k = static_cast<std::size_t>(config_.top_k);
  const auto num_tokens = static_cast<std::size_t>(sizes.num_tokens);
  const auto num_rows = static_cast<std::size_t>(sizes.num_rows);
  const auto num_local = static_cast<std::size_t>(layout_.partition().num_local_experts(rank()));
  if (num_tokens * top_k > state.dst_row.capacity() || num_rows > state.src_rank.capacity()) {
    const std::size_t entry_bytes = sizeof(std::int32_t) + sizeof(SendEntry);
    const std::size_t row_bytes = static_cast<std::size_t>(layout_.record_bytes()) + 2 * sizeof(std::int32_t) +
                                  static_cast<std::size_t>(layout_.weights_per_row()) * sizeof(float);
    require_memory(static_cast<std::int64_t>(num_tokens * top_k * entry_bytes + num_rows * row_bytes),
                   "a handle's descriptions of rows");
  }
  state.dst_row.reserve(num_tokens * top_k);
  if (!layout_.token_major()) state.send_of.reserve(num_tokens * top_k);
  state.sends.reserve(static_cast<std::size_t>(sizes.num_pairs));
  state.send_begin.reserve(num_tokens + 1);
  state.pairs.reserve(state.num_ranks * state.num_ranks);
  state.expert_counts.reserve(num_local);
  state.expert_dropped.reserve(num_local);
  state.src_rank.reserve(num_rows);
  state.src_token.reserve(num_rows);
  state.row_weights.reserve(num_rows * static_cast<std::size_t>(layout_.weights_per_row()));
  if (layout_.token_major()) {
    state.local_experts.reserve(num_rows * top_k);
  } else {
    state.records.reserve(num_rows);
    state.row_expert.reserve(num_rows);
    state.expert_begin.reserve(num_local + 1);
  }
}

void Preparation::place_rows(HostHandle& state) {
  PlaceCounts counts{.pairs_to_rank = pairs_to_rank_, .dropped_of_expert = dropped_of_expert_};
  places_.place(state.tables, rank(), state, counts);
  if (tells_of_drops(state)) {
    const CountsView<std::int32_t> own = own_counts(state);
    std::copy(pairs_to_rank_.begin(), pairs_to_rank_.end(), own.pairs_to_rank.begin());
    std::copy(dropped_of_expert_.begin(), dropped_of_expert_.end(), own.dropped_of_expert.begin());
  }
  state.stats.dropped_by_this_rank = counts.dropped;
  state.stats.sent_remote_assignments = counts.remote_assignments;
}

}  // namespace epistle::host
