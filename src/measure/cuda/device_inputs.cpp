#include "measure/cuda/device_inputs.hpp"

namespace epistle {
namespace {

template <typename Value>
std::int64_t bytes_of(const std::vector<Value>& values) {
  return static_cast<std::int64_t>(values.size() * sizeof(Value));
}

template <typename Value>
const Value* copy_values(cudaStream_t stream, std::vector<Value>& target, const Value* source, std::int64_t count) {
  if (source == nullptr) return nullptr;
  target.resize(static_cast<std::size_t>(count));
  copy_to_host(stream, target.data(), source, bytes_of(target));
  return target.data();
}

}  // namespace

DeviceInputs::DeviceInputs(cudaStream_t stream, const RoutingTable& table, BenchInputs& inputs)
    : expert_ids_(bytes_of(table.expert_ids)),
      weights_(bytes_of(table.weights)),
      rows_(inputs.shape().num_tokens * inputs.row_bytes()),
      scales_(inputs.shape().num_tokens * inputs.scale_row_bytes()),
      out_(bytes_of(inputs.out())),
      ids_(expert_ids_.as<std::int32_t>(), table.num_tokens, table.top_k),
      tokens_(inputs.tokens_at(rows_.as())),
      scales_view_(inputs.scales_at(scales_.as())),
      out_rows_(inputs.out_rows_at(out_.as())) {
  copy_to_device(stream, expert_ids_.as(), table.expert_ids.data(), expert_ids_.num_bytes());
  copy_to_device(stream, weights_.as(), table.weights.data(), weights_.num_bytes());
  copy_to_device(stream, rows_.as(), inputs.tokens().data, rows_.num_bytes());
  copy_to_device(stream, scales_.as(), inputs.scales().data, scales_.num_bytes());
  wait_for_stream(stream);
}

HostCopy::HostCopy(cudaStream_t stream, const ReceivedData& device, std::int32_t top_k) : data_(device) {
  const RowDescription& source = device.description;
  RowDescription& target = data_.description;
  const std::int64_t num_rows = device.num_rows();
  const std::int64_t num_experts = source.num_local_experts;
  const std::int64_t weights_per_row = source.local_experts != nullptr ? top_k : 1;
  const auto copy_bytes = [&](std::vector<std::byte>& bytes, const std::byte* from, std::int64_t num_bytes) {
    copy_values<std::byte>(stream, bytes, from, num_bytes);
    return from == nullptr ? nullptr : bytes.data();
  };
  data_.rows.data = copy_bytes(rows_, device.row_data(), num_rows * device.rows.row_bytes());
  data_.scales.data = copy_bytes(scales_, device.scale_data(), device.scale_bytes());
  target.src_rank = copy_values(stream, src_rank_, source.src_rank, num_rows);
  target.src_token = copy_values(stream, src_token_, source.src_token, num_rows);
  target.local_experts = copy_values(stream, local_experts_, source.local_experts, num_rows * top_k);
  target.row_expert = copy_values(stream, row_expert_, source.row_expert, num_rows);
  target.weights = copy_values(stream, weights_, source.weights, num_rows * weights_per_row);
  target.expert_counts = copy_values(stream, expert_counts_, source.expert_counts, num_experts);
  target.expert_begin = copy_values(stream, expert_begin_, source.expert_begin, num_experts + 1);
  target.expert_dropped = copy_values(stream, expert_dropped_, source.expert_dropped, num_experts);
  wait_for_stream(stream);
}

}  // namespace epistle
