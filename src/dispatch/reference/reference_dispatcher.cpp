#include "dispatch/reference/reference_dispatcher.hpp"

#include <cstring>
#include <vector>

#include "dispatch/reference/oracle.hpp"
#include "dispatch/reference/quantise.hpp"

namespace epistle::reference {
namespace {

void copy_bytes(const std::byte* source, std::byte* target, std::int64_t num_bytes) {
  if (num_bytes > 0) std::memcpy(target, source, static_cast<std::size_t>(num_bytes));
}

std::vector<float> read_row(DType dtype, const std::byte* row, std::int64_t num_elements) {
  std::vector<float> values(static_cast<std::size_t>(num_elements));
  for (std::int64_t idx = 0; idx < num_elements; ++idx) {
    values[static_cast<std::size_t>(idx)] = read_element(dtype, row, idx);
  }
  return values;
}

}  // namespace

void ReferenceMover::send_rows(const host::MoveJob& job) {
  std::byte* rows = context_.own_section(BufferSection::kSendRows);
  std::byte* scales = context_.own_section(BufferSection::kSendScales);
  for (std::int64_t token = 0; token < job.handle->num_tokens; ++token) {
    if (job.quantises) {
      quantise_row(context_.config, job.rows + token * job.row_stride, rows + token * job.row_bytes,
                   scales + token * job.scale_bytes);
      continue;
    }
    copy_bytes(job.rows + token * job.row_stride, rows + token * job.row_bytes, job.row_bytes);
    for (std::int64_t idx = 0; job.scale_bytes > 0 && idx < job.scale_bytes / job.scales.element_bytes; ++idx) {
      copy_bytes(job.scales.data + token * job.scales.row_stride + idx * job.scales.column_stride,
                 scales + token * job.scale_bytes + idx * job.scales.element_bytes, job.scales.element_bytes);
    }
  }
}

void ReferenceMover::receive_rows(const host::MoveJob& job) {
  const host::HostHandle& handle = *job.handle;
  const ScalePlaces places = context_.layout().scale_places(handle.description.num_rows);
  for (std::int64_t row = 0; row < handle.description.num_rows; ++row) {
    const int src_rank = handle.src_rank[static_cast<std::size_t>(row)];
    const std::int64_t src_token = handle.src_token[static_cast<std::size_t>(row)];
    if (src_rank < 0) continue;
    copy_bytes(context_.section(src_rank, BufferSection::kSendRows) + src_token * job.row_bytes,
               context_.own_section(job.target) + row * job.row_bytes, job.row_bytes);
    if (job.scale_bytes == 0) continue;
    const std::byte* const scales =
        context_.section(src_rank, BufferSection::kSendScales) + src_token * job.scale_bytes;
    std::byte* const received = context_.own_section(BufferSection::kReceiveScales);
    if (!places.in_columns()) {
      copy_bytes(scales, received + row * job.scale_bytes, job.scale_bytes);
      continue;
    }
    for (std::int64_t word = 0; word < places.num_words(); ++word) {
      copy_bytes(scales + word * ScalePlaces::kWordBytes, received + places.offset(row, word), ScalePlaces::kWordBytes);
    }
  }
}

void ReferenceMover::receive_sums(const host::SumRequest& request) {
  const host::HostHandle& handle = *request.handle;
  const auto top_k = static_cast<std::size_t>(context_.config.top_k);
  const std::int64_t row_bytes = context_.layout().params().combine_row_bytes;
  const RowReader reader = [&](int rank, std::int32_t row, std::vector<float>& values) {
    values =
        read_row(context_.config.combine_dtype, context_.section(rank, BufferSection::kCombineRows) + row * row_bytes,
                 context_.config.combine_hidden);
  };
  std::vector<std::int32_t> ranks(top_k);
  for (std::int64_t token = 0; token < handle.num_tokens; ++token) {
    const std::size_t first = static_cast<std::size_t>(token) * top_k;
    for (std::size_t position = 0; position < top_k; ++position) {
      const bool is_somewhere = handle.dst_row[first + position] >= 0;
      ranks[position] = is_somewhere ? context_.rank_of_entry(handle, first + position) : -1;
    }
    const TokenPlaces places{
        .ranks = ranks, .weights = {&handle.weights[first], top_k}, .dst_row = {&handle.dst_row[first], top_k}};
    combine_token(context_.config, places, reader, request.weighted, request.out + token * request.out_stride);
  }
}

void ReferenceMover::apply_row_weights(const host::RowWeightJob& job) {
  const host::HostHandle& handle = *job.handle;
  const std::int64_t row_bytes = context_.layout().params().combine_row_bytes;
  const auto per_row = static_cast<std::size_t>(context_.layout().weights_per_row());
  const DType dtype = context_.config.combine_dtype;
  for (std::int64_t row = 0; row < handle.description.num_rows; ++row) {
    std::byte* grad_row = job.grad_rows + row * row_bytes;
    const std::vector<float> gradients = read_row(dtype, grad_row, context_.config.combine_hidden);
    float weight = 0.0F;
    for (std::size_t column = 0; column < per_row; ++column) {
      const std::size_t idx = static_cast<std::size_t>(row) * per_row + column;
      const bool is_here = context_.layout().token_major() ? handle.local_experts[idx] >= 0
                                                           : handle.src_rank[static_cast<std::size_t>(row)] >= 0;
      if (job.saved_rows != nullptr) {
        job.grad_weights[idx] =
            is_here
                ? dot_in_lanes(read_row(dtype, job.saved_rows + row * job.saved_stride, context_.config.combine_hidden),
                               gradients)
                : 0.0F;
      }
      if (is_here) weight += handle.row_weights[idx];
    }
    if (handle.src_rank[static_cast<std::size_t>(row)] < 0) continue;
    for (std::int64_t idx = 0; idx < context_.config.combine_hidden; ++idx) {
      write_element(dtype, grad_row, idx, weight * gradients[static_cast<std::size_t>(idx)]);
    }
  }
}

}  // namespace epistle::reference
