#include "dispatch/host/engine/sums.hpp"

#include <algorithm>
#include <utility>

namespace epistle::host {

TermList& TermList::of_thread() {
  thread_local TermList list;
  return list;
}

void TermList::insert(std::int32_t key, const SumTerm& term) {
  append(key, term);
  for (std::size_t position = keys_.size() - 1; position > 0 && keys_[position - 1] > key; --position) {
    std::swap(keys_[position - 1], keys_[position]);
    std::swap(terms_[position - 1], terms_[position]);
  }
}

void TermList::group_by_key() {
  for (std::size_t idx = 0; idx < keys_.size(); ++idx) {
    const bool last_of_key = idx + 1 == keys_.size() || keys_[idx + 1] != keys_[idx];
    if (last_of_key) group_ends_.push_back(static_cast<std::int32_t>(idx + 1));
  }
}

void TermList::group_by_domain(const Domains& domains) {
  group_ends_.clear();
  for (std::size_t idx = 0; idx < keys_.size(); ++idx) {
    const bool last_of_domain = idx + 1 == keys_.size() || !domains.share_one(keys_[idx], keys_[idx + 1]);
    if (last_of_domain) group_ends_.push_back(static_cast<std::int32_t>(idx + 1));
  }
}

void TermList::replace_groups(std::span<const SumTerm> sums) {
  for (std::size_t group = 0; group < sums.size(); ++group) {
    terms_[group] = sums[group];
    keys_[group] = keys_[static_cast<std::size_t>(group_ends_[group]) - 1];
  }
  terms_.resize(sums.size());
  keys_.resize(sums.size());
  group_ends_.clear();
}

void sum_ranks_first(const HostContext& context, bool weighted, TermList& list) {
  thread_local std::vector<std::byte> rows;
  thread_local std::vector<SumTerm> sums;
  const auto row_bytes = static_cast<std::size_t>(context.layout().params().combine_row_bytes);
  const std::size_t num_ranks = list.group_ends().size();
  if (rows.size() < num_ranks * row_bytes) rows.resize(num_ranks * row_bytes);
  sums.clear();
  std::size_t begin = 0;
  for (std::size_t rank = 0; rank < num_ranks; ++rank) {
    const auto end = static_cast<std::size_t>(list.group_ends()[rank]);
    std::byte* const sum = rows.data() + rank * row_bytes;
    sum_rows({.terms = list.terms().subspan(begin, end - begin),
              .group_ends = {},
              .weighted = weighted,
              .dtype = context.config.combine_dtype,
              .out = sum,
              .num_bytes = row_bytes,
              .mode = StoreMode::kCached});
    sums.push_back({.row = sum, .weight = 1.0F});
    begin = end;
  }
  list.replace_groups(sums);
  list.group_by_domain(context.domains());
}

SumJob sum_job(const HostContext& context, const SumRequest& request, const TermList& terms,
               std::int64_t token) noexcept {
  const std::int64_t row_bytes = context.layout().params().combine_row_bytes;
  return {.terms = terms.terms(),
          .group_ends = terms.group_ends(),
          .weighted = request.weighted,
          .dtype = context.config.combine_dtype,
          .out = request.out + token * request.out_stride,
          .num_bytes = static_cast<std::size_t>(row_bytes),
          .mode = context.store_mode(request.handle->num_tokens * row_bytes)};
}

void sum_rows_in_place(HostContext& context, const SumRequest& request) {
  const HostHandle& handle = *request.handle;
  if (context.layout().token_major()) {
    sum_token_rows(context, request, [&](std::size_t idx) {
      return context.output_row(handle.sends[idx].dst_rank, handle.sends[idx].row);
    });
  } else {
    sum_expert_rows(context, request, [&](std::size_t entry) {
      return context.output_row(context.rank_of_entry(handle, entry), handle.dst_row[entry]);
    });
  }
}

void gather_weight_gradients(const HostContext& context, const TokenTable& table, const EntryRange& entries,
                             float* out) {
  const auto top_k = static_cast<std::size_t>(context.config.top_k);
  const auto per_row = static_cast<std::size_t>(context.layout().weights_per_row());
  for (std::size_t entry = entries.begin; entry < entries.end; ++entry, ++out) {
    const std::int32_t row = table.dst_row[entry];
    *out = 0.0F;
    if (row < 0) continue;
    const auto* gradients = reinterpret_cast<const float*>(
        context.section(context.rank_of_entry(table, entry), BufferSection::kGradWeights));
    const std::size_t column = context.layout().token_major() ? entry % top_k : 0;
    *out = gradients[static_cast<std::size_t>(row) * per_row + column];
  }
}

void apply_row_weights(HostContext& context, const RowWeightJob& job) {
  const HostHandle& handle = *job.handle;
  const std::int64_t row_bytes = context.layout().params().combine_row_bytes;
  const auto num_bytes = static_cast<std::size_t>(row_bytes);
  const auto per_row = static_cast<std::size_t>(context.layout().weights_per_row());
  const DType dtype = context.config.combine_dtype;
  const bool token_major = context.layout().token_major();
  context.pool.parallel_for(handle.description.num_rows, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      const std::size_t first = static_cast<std::size_t>(row) * per_row;
      const bool is_padding = handle.src_rank[static_cast<std::size_t>(row)] < 0;
      std::byte* grad_row = job.grad_rows + row * row_bytes;
      if (job.saved_rows != nullptr) {
        std::fill_n(job.grad_weights + first, per_row, 0.0F);
        const float product =
            is_padding ? 0.0F : dot_rows(dtype, job.saved_rows + row * job.saved_stride, grad_row, num_bytes);
        for (std::size_t column = 0; column < per_row; ++column) {
          const bool is_here = !token_major || handle.local_experts[first + column] >= 0;
          if (is_here) job.grad_weights[first + column] = product;
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
