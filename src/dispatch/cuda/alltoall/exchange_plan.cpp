#include "dispatch/cuda/alltoall/exchange_plan.hpp"

#include <algorithm>

namespace epistle::nccl {

PairTable::PairTable(int num_ranks, std::span<const std::int32_t> pairs)
    : num_ranks_(num_ranks), counts_(pairs.begin(), pairs.end()), packed_begin_(pairs.size()) {
  for (int source = 0; source < num_ranks; ++source) {
    std::int64_t begin = 0;
    for (int destination = 0; destination < num_ranks; ++destination) {
      packed_begin_[at(source, destination)] = begin;
      if (destination != source) begin += counts_[at(source, destination)];
    }
  }
}

PairTable::PairTable(std::span<const cuda::HandleTotals> totals)
    : num_ranks_(static_cast<int>(totals.size())),
      counts_(totals.size() * totals.size()),
      packed_begin_(totals.size() * totals.size()) {
  for (int source = 0; source < num_ranks_; ++source) {
    for (int destination = 0; destination < num_ranks_; ++destination) {
      const cuda::HandleTotals& there = totals[static_cast<std::size_t>(destination)];
      counts_[at(source, destination)] = there.pair_begin[source + 1] - there.pair_begin[source];
      packed_begin_[at(source, destination)] = there.stage_begin[source];
    }
  }
}

Block PairTable::packed(int source, int destination) const noexcept {
  if (source == destination) return {};
  return {packed_begin_[at(source, destination)], counts_[at(source, destination)]};
}

Block PairTable::received(int source, int destination) const noexcept {
  Block block{0, counts_[at(source, destination)]};
  for (int before = 0; before < source; ++before) block.begin += counts_[at(before, destination)];
  return block;
}

std::int64_t PairTable::num_received(int rank) const noexcept {
  std::int64_t rows = 0;
  for (int source = 0; source < num_ranks_; ++source) rows += counts_[at(source, rank)];
  return rows;
}

std::int64_t PairTable::packed_end(int rank) const noexcept {
  std::int64_t end = 0;
  for (int destination = 0; destination < num_ranks_; ++destination) {
    const Block block = packed(rank, destination);
    end = std::max(end, block.begin + block.num_rows);
  }
  return end;
}

}  // namespace epistle::nccl
