#include "layout/batch_shares.hpp"

#include <algorithm>
#include <cstddef>

namespace epistle {

BatchShares::BatchShares(std::span<const std::int32_t> begin, std::span<const ReplicaEntry> entries,
                         std::int32_t num_ranks)
    : begin_(begin.begin(), begin.end()),
      rank_of_(entries.size()),
      expert_of_(entries.size()),
      entries_(static_cast<std::size_t>(num_ranks)),
      is_holder_(static_cast<std::size_t>(num_ranks), 0),
      share_(entries.size(), 0),
      rank_load_(static_cast<std::size_t>(num_ranks), 0),
      rank_level_(static_cast<std::size_t>(num_ranks), 0),
      expert_level_(begin.size() - 1, 0),
      receiver_(begin.size() - 1, 0) {
  for (std::size_t expert = 0; expert + 1 < begin_.size(); ++expert) {
    if (begin_[expert + 1] - begin_[expert] > 1) replicated_.push_back(expert);
    for (std::int32_t entry = begin_[expert]; entry < begin_[expert + 1]; ++entry) {
      const auto at = static_cast<std::size_t>(entry);
      const auto rank = static_cast<std::size_t>(entries[at].rank);
      rank_of_[at] = entries[at].rank;
      expert_of_[at] = static_cast<std::int32_t>(expert);
      is_holder_[rank] = 1;
      if (begin_[expert + 1] - begin_[expert] > 1) entries_[rank].push_back(entry);
    }
  }
  for (std::vector<std::int32_t>& own : entries_) {
    std::sort(own.begin(), own.end(), [&](std::int32_t a, std::int32_t b) {
      return entries[static_cast<std::size_t>(a)].slot < entries[static_cast<std::size_t>(b)].slot;
    });
  }
  num_holders_ = static_cast<std::int32_t>(std::count(is_holder_.begin(), is_holder_.end(), 1));
}

void BatchShares::begin_with(std::span<const std::int64_t> expert_tokens) {
  std::int64_t total = 0;
  for (const std::int64_t tokens : expert_tokens) total += std::max<std::int64_t>(tokens, 0);
  shift_ = batch_shift(total);
  std::fill(rank_load_.begin(), rank_load_.end(), 0);
  std::int32_t sum = 0;
  for (std::size_t expert = 0; expert < expert_tokens.size(); ++expert) {
    const std::int32_t units = batch_units(expert_tokens[expert], shift_);
    const std::int32_t count = begin_[expert + 1] - begin_[expert];
    sum += units;
    for (std::int32_t idx = 0; idx < count; ++idx) {
      const std::int32_t entry = begin_[expert] + idx;
      share_[static_cast<std::size_t>(entry)] = first_share(units, count, idx);
      rank_load_[rank_at(entry)] += share_[static_cast<std::size_t>(entry)];
    }
  }
  target_ = mean_of_ranks(sum, num_holders_);
  num_phases_ = 0;
}

void BatchShares::solve(std::span<const std::int64_t> expert_tokens) {
  begin_with(expert_tokens);
  for (; is_any_above(); ++num_phases_) {
    const std::int32_t outermost = search();
    if (is_any_stuck()) {
      target_ = mean_of_stuck();
      continue;
    }
    for (std::int32_t level = outermost; level > 0; --level) {
      for (std::size_t rank = 0; rank < rank_load_.size(); ++rank) {
        if (rank_level_[rank] == level) pass_on(rank, level);
      }
    }
  }
}

bool BatchShares::is_any_above() const noexcept {
  return std::any_of(rank_load_.begin(), rank_load_.end(), [this](std::int32_t load) { return load > target_; });
}

bool BatchShares::is_any_stuck() const noexcept {
  for (std::size_t rank = 0; rank < rank_load_.size(); ++rank) {
    if (rank_load_[rank] > target_ && rank_level_[rank] == kNotReached) return true;
  }
  return false;
}

/// Returns the level at which the last rank above the target was reached, or no further one was.
std::int32_t BatchShares::search() {
  for (std::size_t rank = 0; rank < rank_load_.size(); ++rank) {
    rank_level_[rank] = is_holder_[rank] != 0 && rank_load_[rank] < target_ ? 0 : kNotReached;
  }
  std::fill(expert_level_.begin(), expert_level_.end(), 0);
  std::int32_t level = 0;
  while (is_any_stuck()) {
    ++level;
    added_.clear();
    for (const std::size_t expert : replicated_) {
      if (expert_level_[expert] == 0) reach(expert, level);
    }
    if (added_.empty()) break;
    for (const std::size_t rank : added_) rank_level_[rank] = level;
  }
  return level;
}

/// An expert of which a rank that was reached has a replica: the emptiest of these takes what its other ranks pass on.
void BatchShares::reach(std::size_t expert, std::int32_t level) {
  std::int32_t receiver = -1;
  for (std::int32_t entry = begin_[expert]; entry < begin_[expert + 1]; ++entry) {
    if (rank_level_[rank_at(entry)] == kNotReached) continue;
    if (receiver < 0 || rank_load_[rank_at(entry)] < rank_load_[rank_at(receiver)]) receiver = entry;
  }
  if (receiver < 0) return;
  expert_level_[expert] = level;
  receiver_[expert] = receiver;
  for (std::int32_t entry = begin_[expert]; entry < begin_[expert + 1]; ++entry) {
    const bool is_new = share_[static_cast<std::size_t>(entry)] > 0 && rank_level_[rank_at(entry)] == kNotReached;
    if (is_new) added_.push_back(rank_at(entry));
  }
}

std::int32_t BatchShares::mean_of_stuck() {
  // Ranks that were reached keep their level; what is stuck gets one above all.
  constexpr std::int32_t kStuck = 1 << 20;
  for (std::size_t rank = 0; rank < rank_load_.size(); ++rank) {
    if (rank_load_[rank] > target_ && rank_level_[rank] == kNotReached) rank_level_[rank] = kStuck;
  }
  for (bool grows = true; grows;) {
    grows = false;
    for (const std::size_t expert : replicated_) {
      bool is_held = false;
      for (std::int32_t entry = begin_[expert]; entry < begin_[expert + 1]; ++entry) {
        is_held = is_held || (share_[static_cast<std::size_t>(entry)] > 0 && rank_level_[rank_at(entry)] == kStuck);
      }
      for (std::int32_t entry = begin_[expert]; is_held && entry < begin_[expert + 1]; ++entry) {
        grows = grows || rank_level_[rank_at(entry)] != kStuck;
        rank_level_[rank_at(entry)] = kStuck;
      }
    }
  }
  std::int32_t sum = 0;
  std::int32_t count = 0;
  for (std::size_t rank = 0; rank < rank_load_.size(); ++rank) {
    if (rank_level_[rank] != kStuck) continue;
    sum += rank_load_[rank];
    ++count;
  }
  return mean_of_ranks(sum, count);
}

void BatchShares::pass_on(std::size_t rank, std::int32_t level) {
  for (const std::int32_t entry : entries_[rank]) {
    const std::int32_t surplus = rank_load_[rank] - target_;
    if (surplus <= 0) return;
    const auto at = static_cast<std::size_t>(entry);
    const auto expert = static_cast<std::size_t>(expert_of_[at]);
    if (expert_level_[expert] != level) continue;
    const std::int32_t amount = std::min(surplus, share_[at]);
    const std::int32_t receiver = receiver_[expert];
    share_[at] -= amount;
    rank_load_[rank] -= amount;
    share_[static_cast<std::size_t>(receiver)] += amount;
    rank_load_[rank_at(receiver)] += amount;
  }
}

void BatchShares::set_parts(std::span<ReplicaEntry> entries) const {
  for (const std::size_t expert : replicated_) {
    const std::int32_t count = begin_[expert + 1] - begin_[expert];
    std::int32_t units = 0;
    for (std::int32_t entry = begin_[expert]; entry < begin_[expert + 1]; ++entry) {
      units += share_[static_cast<std::size_t>(entry)];
    }
    std::int32_t sum = 0;
    for (std::int32_t idx = 0; idx < count; ++idx) {
      const auto at = static_cast<std::size_t>(begin_[expert] + idx);
      sum += share_[at];
      entries[at].part_end = batch_part_end(sum, units, count, idx);
    }
  }
}

}  // namespace epistle
