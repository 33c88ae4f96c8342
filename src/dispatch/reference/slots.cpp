#include "dispatch/reference/slots.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "layout/dispatch_layout.hpp"

namespace epistle::reference {
namespace {

constexpr double kTwoTo32 = 4294967296.0;

std::uint64_t mixed(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9U;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebU;
  return x ^ (x >> 31);
}

double units(double part) { return std::min(std::floor(part * kTwoTo32), kTwoTo32 - 1.0); }

/// The place in `parts` that `draw` (of 32 bits) falls into, in the ratio of the parts.
std::size_t drawn(const std::vector<double>& parts, std::uint64_t draw) {
  const double total = std::accumulate(parts.begin(), parts.end(), 0.0);
  double sum = 0.0;
  for (std::size_t idx = 0; idx + 1 < parts.size(); ++idx) {
    sum += total > 0.0 ? parts[idx] / total : 1.0 / static_cast<double>(parts.size());
    if (static_cast<double>(draw) < units(sum)) return idx;
  }
  return parts.size() - 1;
}

/// The replicas of one expert, for tokens of one rank.
class Replicas {
 public:
  Replicas(const Placement& placement, std::int32_t expert)
      : choice_(placement.choice()), slots_(placement.replicas_of(expert)), num_ranks_(placement.num_ranks()) {
    for (const SlotRef& slot : slots_) {
      quotas_.push_back(
          choice_.quotas.empty()
              ? 1.0
              : choice_.quotas[static_cast<std::size_t>(slot.rank)][static_cast<std::size_t>(slot.local_slot)]);
    }
    const double total = std::accumulate(quotas_.begin(), quotas_.end(), 0.0);
    for (double& quota : quotas_) quota /= total;
  }

  [[nodiscard]] SlotRef choose(int rank, std::uint64_t hash) const {
    if (slots_.size() == 1) return slots_[0];
    return slots_[choice_.near_first ? near(rank, hash) : drawn(quotas_, hash >> 32)];
  }

 private:
  [[nodiscard]] std::int32_t domain_of(std::int32_t rank) const {
    return choice_.domain_of_rank.empty() ? 0 : choice_.domain_of_rank[static_cast<std::size_t>(rank)];
  }

  [[nodiscard]] std::size_t near(int rank, std::uint64_t hash) const {
    const double per_rank = 1.0 / num_ranks_;  // of the expert's tokens
    const auto u = static_cast<double>(hash >> 32);
    const std::uint64_t again = mixed(hash);
    std::vector<double> left = quotas_;
    std::vector<double> own(slots_.size());
    for (std::size_t idx = 0; idx < slots_.size(); ++idx) {
      own[idx] = std::min(per_rank, quotas_[idx] * (1.0 + choice_.max_imbalance));
      left[idx] = std::max(quotas_[idx] - own[idx], 0.0);
      if (slots_[idx].rank == rank && u < units(own[idx] / per_rank)) return idx;
    }
    // What a domain takes of what is left, of its own tokens.
    const auto take = [&](std::int32_t domain, std::vector<double>& parts, double& wanted, double& tokens) {
      wanted = 0.0;
      tokens = 0.0;
      for (std::int32_t peer = 0; peer < num_ranks_; ++peer) tokens += domain_of(peer) == domain ? per_rank : 0.0;
      for (std::size_t idx = 0; idx < slots_.size(); ++idx) {
        const bool is_in = domain_of(slots_[idx].rank) == domain;
        parts[idx] = is_in ? left[idx] : 0.0;
        wanted += parts[idx];
        tokens -= is_in ? own[idx] : 0.0;
      }
      return wanted > 0.0 && tokens > 0.0 ? std::min(wanted, tokens) : 0.0;
    };
    std::vector<double> parts(slots_.size());
    double wanted = 0.0;
    double tokens = 0.0;
    const double taken = take(domain_of(rank), parts, wanted, tokens);
    if (taken > 0.0 && static_cast<double>(again >> 32) < units(taken / tokens)) {
      return drawn_in(domain_of(rank), parts, again & 0xffffffffU);
    }
    std::vector<double> far = left;
    for (std::size_t idx = 0; idx < slots_.size(); ++idx) {
      const double of_domain = take(domain_of(slots_[idx].rank), parts, wanted, tokens);
      if (of_domain > 0.0) far[idx] = left[idx] * (1.0 - of_domain / wanted);
    }
    return drawn(far, again & 0xffffffffU);
  }

  /// As drawn(), among the replicas of the domain.
  [[nodiscard]] std::size_t drawn_in(std::int32_t domain, const std::vector<double>& parts, std::uint64_t draw) const {
    std::vector<std::size_t> members;
    std::vector<double> of_members;
    for (std::size_t idx = 0; idx < slots_.size(); ++idx) {
      if (domain_of(slots_[idx].rank) != domain) continue;
      members.push_back(idx);
      of_members.push_back(parts[idx]);
    }
    return members[drawn(of_members, draw)];
  }

  const ReplicaChoice& choice_;
  std::span<const SlotRef> slots_;
  std::int32_t num_ranks_;
  std::vector<double> quotas_;
};

bool is_placed(const Placement* placement) { return placement != nullptr && !placement->is_trivial(); }

}  // namespace

SlotRef slot_of(const ResolvedConfig& config, int num_ranks, const Placement* placement, std::int32_t expert,
                const TokenAt& at) {
  if (!is_placed(placement)) {
    const ExpertPartition partition{config.num_experts, num_ranks};
    const std::int32_t rank = partition.rank_of(expert);
    return {rank, expert - partition.first_expert(rank)};
  }
  constexpr std::uint64_t kG = 0x9e3779b97f4a7c15U;
  const auto position = static_cast<std::uint64_t>(at.rank * config.max_tokens + at.token);
  const std::uint64_t of_expert = mixed(mixed(at.step_seed + kG) + kG * (static_cast<std::uint64_t>(expert) + 1));
  return Replicas(*placement, expert).choose(at.rank, mixed(of_expert + kG * position));
}

std::int32_t num_local_experts(const ResolvedConfig& config, int num_ranks, const Placement* placement, int rank) {
  if (is_placed(placement)) return static_cast<std::int32_t>(placement->experts_of(rank).size());
  return ExpertPartition{config.num_experts, num_ranks}.num_local_experts(rank);
}

}  // namespace epistle::reference
