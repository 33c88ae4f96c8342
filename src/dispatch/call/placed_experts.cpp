#include "dispatch/call/placed_experts.hpp"

#include <algorithm>
#include <bit>
#include <string>
#include <utility>

#include <fmt/format.h>

#include "layout/dispatch_layout.hpp"
#include "layout/replica_parts.hpp"

namespace epistle {

PlacedExperts::PlacedExperts(Placement placement, const ResolvedConfig& config, int num_ranks, int rank)
    : placement_(std::move(placement)),
      rank_(rank),
      first_position_(epistle::first_position(config.max_tokens, rank)),
      expert_of_slot_(static_cast<std::size_t>(config.num_columns(num_ranks)), kNoExpert) {
  const ReplicaChoice& choice = placement_.choice();
  const RankDomains domains{num_ranks, choice.domain_of_rank};
  policy_ = {.near_first = choice.near_first ? 1 : 0, .domain = domains.domain_of(rank)};
  replica_begin_.push_back(0);
  for (std::int32_t expert = 0; expert < placement_.num_experts(); ++expert) {
    std::vector<double> quotas;
    for (const SlotRef& replica : placement_.replicas_of(expert)) {
      const std::int32_t slot = replica.rank * config.slots_per_rank + replica.local_slot;
      expert_of_slot_[static_cast<std::size_t>(slot)] = expert;
      entries_.push_back({.rank = replica.rank, .domain = domains.domain_of(replica.rank), .slot = slot});
      quotas.push_back(
          choice.quotas.empty()
              ? 1.0
              : choice.quotas[static_cast<std::size_t>(replica.rank)][static_cast<std::size_t>(replica.local_slot)]);
    }
    const auto first = static_cast<std::size_t>(replica_begin_.back());
    set_replica_parts(std::span(entries_).subspan(first), quotas, domains, choice.max_imbalance);
    replica_begin_.push_back(static_cast<std::int32_t>(entries_.size()));
  }
  for (int peer = 0; peer < num_ranks; ++peer) {
    slots_of_rank_.push_back(static_cast<std::int32_t>(placement_.experts_of(peer).size()));
  }
}

void PlacedExperts::share_batch(const BatchQuotasRequest& request) {
  const std::size_t num_ranks = slots_of_rank_.size();
  if (!batch_shares_) batch_shares_.emplace(replica_begin_, entries_, static_cast<std::int32_t>(num_ranks));
  batch_shares_->solve(std::span(request.expert_tokens, replica_begin_.size() - 1));
  batch_shares_->set_parts(entries_);
  for (std::size_t rank = 0; rank < num_ranks && request.rank_tokens != nullptr; ++rank) {
    request.rank_tokens[rank] = batch_shares_->in_tokens(batch_shares_->rank_units()[rank]);
  }
  if (request.slot_tokens == nullptr) return;
  std::fill_n(request.slot_tokens, expert_of_slot_.size(), 0);
  for (std::size_t entry = 0; entry < entries_.size(); ++entry) {
    request.slot_tokens[entries_[entry].slot] = batch_shares_->in_tokens(batch_shares_->units()[entry]);
  }
}

Complaint refuse_batch_quotas(const BatchQuotasRequest& request, const PlacedExperts& placed) {
  const auto complain = [](const char* message) { return Error(ErrorCode::kInvalidArgument, message); };
  if (request.expert_tokens == nullptr) {
    return complain("set_batch_quotas: expert_tokens is null; give the tokens of every expert, [num_experts]");
  }
  if (placed.is_trivial()) {
    return complain("set_batch_quotas: experts are not placed, so every one has one slot; give a placement first");
  }
  if (placed.placement().choice().near_first) {
    return complain(
        "set_batch_quotas: the placement has near_first, whose parts are made of quotas that are known beforehand; use "
        "one without it");
  }
  return std::nullopt;
}

Placement blocks_of_experts(std::int32_t num_experts, int num_ranks) {
  const ExpertPartition partition{num_experts, num_ranks};
  std::vector<std::vector<std::int32_t>> slots(static_cast<std::size_t>(num_ranks));
  for (std::int32_t expert = 0; expert < num_experts; ++expert) {
    slots[static_cast<std::size_t>(partition.rank_of(expert))].push_back(expert);
  }
  return {num_experts, slots};
}

Complaint misfit(const Placement& placement, const ResolvedConfig& config, int num_ranks) {
  const auto complain = [](const std::string& message) { return Error(ErrorCode::kInvalidArgument, message); };
  if (placement.num_experts() != config.num_experts) {
    return complain(fmt::format("the placement is of {} experts, the dispatcher of {}; place all of them",
                                placement.num_experts(), config.num_experts));
  }
  if (placement.num_ranks() != num_ranks) {
    return complain(fmt::format("the placement is for {} ranks, the group has {}; a rank may have no slots",
                                placement.num_ranks(), num_ranks));
  }
  if (placement.max_slots_per_rank() <= config.slots_per_rank) return std::nullopt;
  return complain(
      fmt::format("a rank of the placement has {} slots; the dispatcher has room for {} (set "
                  "DispatcherConfig::slots_per_rank to the most that any placement will have)",
                  placement.max_slots_per_rank(), config.slots_per_rank));
}

std::uint64_t fingerprint(const Placement& placement) {
  if (placement.is_trivial()) return 0;
  std::uint64_t hash = 0;
  const auto add = [&](std::uint64_t value) { hash = mix_bits(hash + 0x9E3779B97F4A7C15ULL) ^ mix_bits(value + 1); };
  const ReplicaChoice& choice = placement.choice();
  add(static_cast<std::uint64_t>(placement.num_experts()));
  for (std::int32_t rank = 0; rank < placement.num_ranks(); ++rank) {
    const std::span<const std::int32_t> experts = placement.experts_of(rank);
    add(experts.size());
    for (std::size_t slot = 0; slot < experts.size(); ++slot) {
      add(static_cast<std::uint64_t>(experts[slot]));
      if (!choice.quotas.empty()) {
        add(std::bit_cast<std::uint64_t>(choice.quotas[static_cast<std::size_t>(rank)][slot]));
      }
    }
    if (!choice.domain_of_rank.empty()) {
      add(static_cast<std::uint64_t>(choice.domain_of_rank[static_cast<std::size_t>(rank)]));
    }
  }
  add((choice.quotas.empty() ? 0U : 1U) + (choice.domain_of_rank.empty() ? 0U : 2U) + (choice.near_first ? 4U : 0U));
  add(std::bit_cast<std::uint64_t>(choice.max_imbalance));
  return hash;
}

namespace {

/// What every rank tells the others of the placement that it is given.
struct PlacementPost {
  std::uint64_t generation = 0;
  std::uint64_t hash = 0;
  friend bool operator==(const PlacementPost&, const PlacementPost&) = default;
};

/// What is wrong with a new placement, whatever the other ranks were given.
Complaint find_fault(const PlacementChange& change, int num_ranks) {
  const auto complain = [](const std::string& message) { return Error(ErrorCode::kInvalidArgument, message); };
  if (!change.config.places_experts()) {
    return complain(
        "this dispatcher was created for the trivial placement only; create it with DispatcherConfig::placement, or "
        "with slots_per_rank");
  }
  if (change.next.is_trivial()) {
    return complain(
        fmt::format("the placement is the trivial one, without tables; give its slots: experts in blocks "
                    "over {} ranks",
                    num_ranks));
  }
  if (Complaint complaint = misfit(change.next, change.config, num_ranks)) return complaint;
  if (change.next.generation() > change.generation) return std::nullopt;
  return complain(fmt::format("the placement has generation {}, the one in force {}; a newer one is greater",
                              change.next.generation(), change.generation));
}

}  // namespace

void agree_on_placement(GroupImpl& group, const PlacementChange& change, const Complaint& complaint) {
  const PlacementPost own{change.next.generation(), fingerprint(change.next)};
  const std::vector<PlacementPost> posts =
      group.gather({.kind = CallKind::kSetPlacement, .subject = change.dispatcher}, Phase::kLayout, own, complaint);
  for (std::size_t peer = 0; peer < posts.size(); ++peer) {
    if (posts[peer] == posts[0]) continue;
    throw AgreedError(
        ErrorCode::kShapeMismatch,
        fmt::format(
            "set_placement: rank {} has generation {} (hash {:016x}), rank {} has generation {} (hash {:016x}); "
            "all ranks must give the same placement",
            group.first_member(), posts[0].generation, posts[0].hash, peer, posts[peer].generation, posts[peer].hash),
        {.rank = group.rank(), .peer_rank = static_cast<int>(peer), .phase = Phase::kLayout});
  }
  // The same placement over the same one, so what is wrong with it is wrong on all ranks.
  if (const Complaint fault = find_fault(change, group.num_ranks())) {
    throw AgreedError(fault->code(), std::string(fault->message()), {.rank = group.rank(), .phase = Phase::kLayout});
  }
}

std::optional<std::uint64_t> newest_where_placements_differ(GroupImpl& group, const Placement& placement,
                                                            std::uint64_t dispatcher) {
  const PlacementPost own{placement.generation(), fingerprint(placement)};
  const std::vector<PlacementPost> posts =
      group.gather({.kind = CallKind::kSetPlacement, .subject = dispatcher}, Phase::kLayout, own);
  std::uint64_t newest = 0;
  bool differ = false;
  for (const PlacementPost& post : posts) {
    newest = std::max(newest, post.generation);
    differ = differ || !(post == posts[0]);
  }
  return differ ? std::optional(newest) : std::nullopt;
}

}  // namespace epistle
