#include "dispatch/reference/reference_dispatcher.hpp"

#include <cstring>
#include <vector>

#include "dispatch/reference/oracle.hpp"

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

void ReferenceDispatcher::send_rows(const MoveJob& job) {
  const std::int64_t num_tokens = job.handle->stats.num_tokens;
  copy_bytes(job.rows, own_section(BufferSection::kSendRows), num_tokens * job.row_bytes);
  copy_bytes(job.scales, own_section(BufferSection::kSendScales), num_tokens * job.scale_bytes);
}

void ReferenceDispatcher::receive_rows(const MoveJob& job) {
  const HandleState& handle = *job.handle;
  for (std::int64_t row = 0; row < handle.output.num_rows; ++row) {
    const int src_rank = handle.src_rank[static_cast<std::size_t>(row)];
    const std::int64_t src_token = handle.src_token[static_cast<std::size_t>(row)];
    if (src_rank < 0) continue;
    copy_bytes(section(src_rank, BufferSection::kSendRows) + src_token * job.row_bytes,
               own_section(job.target) + row * job.row_bytes, job.row_bytes);
    copy_bytes(section(src_rank, BufferSection::kSendScales) + src_token * job.scale_bytes,
               own_section(BufferSection::kReceiveScales) + row * job.scale_bytes, job.scale_bytes);
  }
}

void ReferenceDispatcher::receive_sums(const SumRequest& request) {
  const HandleState& handle = *request.handle;
  const auto top_k = static_cast<std::size_t>(config().top_k);
  const std::int64_t row_bytes = layout().params().combine_row_bytes;
  const RowReader reader = [&](int rank, std::int32_t row, std::vector<float>& values) {
    values = read_row(config().combine_dtype, section(rank, BufferSection::kCombineRows) + row * row_bytes,
                      config().combine_hidden);
  };
  for (std::int64_t token = 0; token < handle.stats.num_tokens; ++token) {
    const std::size_t first = static_cast<std::size_t>(token) * top_k;
    const TokenPlaces places{.expert_ids = {&handle.expert_ids[first], top_k},
                             .weights = {&handle.weights[first], top_k},
                             .dst_row = {&handle.dst_row[first], top_k}};
    combine_token(config(), num_ranks(), places, reader, request.weighted, request.out + token * row_bytes);
  }
}

void ReferenceDispatcher::copy_rows(const std::byte* source, std::byte* target, std::int64_t num_rows) {
  copy_bytes(source, target, num_rows * layout().params().combine_row_bytes);
}

void ReferenceDispatcher::apply_row_weights(const HandleState& handle, const std::byte* saved_rows,
                                            std::byte* grad_rows, float* grad_weights) {
  const std::int64_t row_bytes = layout().params().combine_row_bytes;
  const auto per_row = static_cast<std::size_t>(layout().weights_per_row());
  const DType dtype = config().combine_dtype;
  for (std::int64_t row = 0; row < handle.output.num_rows; ++row) {
    std::byte* grad_row = grad_rows + row * row_bytes;
    const std::vector<float> gradients = read_row(dtype, grad_row, config().combine_hidden);
    float weight = 0.0F;
    for (std::size_t column = 0; column < per_row; ++column) {
      const std::size_t idx = static_cast<std::size_t>(row) * per_row + column;
      const bool is_here = layout().token_major() ? handle.local_expert_ids[idx] >= 0
                                                  : handle.src_rank[static_cast<std::size_t>(row)] >= 0;
      if (grad_weights != nullptr) {
        grad_weights[idx] =
            is_here ? dot_in_lanes(read_row(dtype, saved_rows + row * row_bytes, config().combine_hidden), gradients)
                    : 0.0F;
      }
      if (is_here) weight += handle.row_weights[idx];
    }
    if (handle.src_rank[static_cast<std::size_t>(row)] < 0) continue;
    for (std::int64_t idx = 0; idx < config().combine_hidden; ++idx) {
      write_element(dtype, grad_row, idx, weight * gradients[static_cast<std::size_t>(idx)]);
    }
  }
}

}  // namespace epistle::reference
