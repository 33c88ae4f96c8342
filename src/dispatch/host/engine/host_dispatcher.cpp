#include "dispatch/host/engine/host_dispatcher.hpp"

#include <algorithm>
#include <utility>

#include "core/settings.hpp"
#include "topology/machine.hpp"

namespace epistle::host {
namespace {

// Where the size of the last-level cache is not to be had.
constexpr std::int64_t kDefaultLastLevelCacheBytes = 32 << 20;

}  // namespace

std::int64_t streaming_threshold_bytes(int num_ranks) {
  const std::int64_t configured = settings().stream_bytes();
  if (configured >= 0) return configured;
  // Together the ranks would push out of the last-level cache what their readers need next; see docs/tuning/host.md.
  const std::int64_t cache_bytes = machine_info().last_level_cache_bytes;
  return (cache_bytes > 0 ? cache_bytes : kDefaultLastLevelCacheBytes) / num_ranks;
}

void TermList::insert_by_rank(int rank, const SumTerm& term) {
  append(rank, term);
  for (std::size_t position = ranks_.size() - 1; position > 0 && ranks_[position - 1] > rank; --position) {
    std::swap(ranks_[position - 1], ranks_[position]);
    std::swap(terms_[position - 1], terms_[position]);
  }
}

void TermList::group_by_rank() {
  for (std::size_t idx = 0; idx < ranks_.size(); ++idx) {
    const bool last_of_rank = idx + 1 == ranks_.size() || ranks_[idx + 1] != ranks_[idx];
    if (last_of_rank) group_ends_.push_back(static_cast<std::int32_t>(idx + 1));
  }
}

HostDispatcher::HostDispatcher(Group& group, const DispatcherConfig& config, Transport transport)
    : CollectiveDispatcher(group, config, transport),
      stream_bytes_(streaming_threshold_bytes(group.size())),
      pool_(config.num_workers) {}

TermList& HostDispatcher::term_list() {
  thread_local TermList list;
  return list;
}

StoreMode HostDispatcher::store_mode(std::int64_t num_bytes) const noexcept {
  return num_bytes >= stream_bytes_ ? StoreMode::kStreaming : StoreMode::kCached;
}

SumJob HostDispatcher::sum_job(const SumRequest& request, const TermList& terms, std::int64_t token) const noexcept {
  const std::int64_t row_bytes = layout().params().combine_row_bytes;
  return {.terms = terms.terms(),
          .group_ends = terms.group_ends(),
          .weighted = request.weighted,
          .dtype = config().combine_dtype,
          .out = request.out + token * row_bytes,
          .num_bytes = static_cast<std::size_t>(row_bytes),
          .mode = store_mode(request.handle->stats.num_tokens * row_bytes)};
}

void HostDispatcher::copy_rows(const std::byte* source, std::byte* target, std::int64_t num_rows) {
  const std::int64_t row_bytes = layout().params().combine_row_bytes;
  copy_block({.source = source,
              .target = target,
              .num_rows = num_rows,
              .row_bytes = row_bytes,
              .mode = store_mode(num_rows * row_bytes)});
}

void HostDispatcher::copy_block(const RowBlock& block) {
  pool_.parallel_for(block.num_rows, [&](std::int64_t begin, std::int64_t end) {
    copy_row(block.source + begin * block.row_bytes, block.target + begin * block.row_bytes,
             static_cast<std::size_t>((end - begin) * block.row_bytes), block.mode);
    store_fence();
  });
}

void HostDispatcher::apply_row_weights(const HandleState& handle, const std::byte* saved_rows, std::byte* grad_rows,
                                       float* grad_weights) {
  const std::int64_t row_bytes = layout().params().combine_row_bytes;
  const auto num_bytes = static_cast<std::size_t>(row_bytes);
  const auto per_row = static_cast<std::size_t>(layout().weights_per_row());
  const DType dtype = config().combine_dtype;
  pool_.parallel_for(handle.output.num_rows, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      const std::size_t first = static_cast<std::size_t>(row) * per_row;
      const bool is_padding = handle.src_rank[static_cast<std::size_t>(row)] < 0;
      std::byte* grad_row = grad_rows + row * row_bytes;
      if (grad_weights != nullptr) {
        std::fill_n(grad_weights + first, per_row, 0.0F);
        const float product = is_padding ? 0.0F : dot_rows(dtype, saved_rows + row * row_bytes, grad_row, num_bytes);
        for (std::size_t column = 0; column < per_row; ++column) {
          const bool is_here = !layout().token_major() || handle.local_expert_ids[first + column] >= 0;
          if (is_here) grad_weights[first + column] = product;
        }
      }
      if (is_padding) continue;
      float weight = 0.0F;
      for (std::size_t column = 0; column < per_row; ++column) weight += handle.row_weights[first + column];
      scale_row(dtype, grad_row, weight, grad_row, num_bytes);
    }
  });
}

}  // namespace epistle::host
