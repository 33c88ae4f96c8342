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
      rows_(inputs.shape().num_tokens * inputs.shape().row_bytes),
      scales_(inputs.shape().num_tokens * inputs.shape().scale_bytes),
      out_(bytes_of(inputs.out())),
      routing_(table.view()),
      payload_(inputs.payload()) {
  copy_to_device(stream, expert_ids_.as(), table.expert_ids.data(), expert_ids_.num_bytes());
  copy_to_device(stream, weights_.as(), table.weights.data(), weights_.num_bytes());
  copy_to_device(stream, rows_.as(), payload_.rows, rows_.num_bytes());
  copy_to_device(stream, scales_.as(), payload_.scales, scales_.num_bytes());
  wait_for_stream(stream);
  routing_.expert_ids = expert_ids_.as();
  routing_.weights = weights_.as<float>();
  payload_.rows = rows_.as();
  payload_.scales = scales_.as();
}

HostOutput::HostOutput(cudaStream_t stream, const DispatchOutput& device, const DispatcherConfig& config)
    : output_(device) {
  const std::int64_t num_rows = device.num_rows;
  const std::int64_t num_experts = device.num_local_experts;
  const std::int64_t per_row = config.layout == OutputLayout::kTokenMajor ? config.top_k : 1;
  const auto copy_rows = [&](std::vector<std::byte>& target, const std::byte* source, std::int64_t row_bytes) {
    copy_values<std::byte>(stream, target, source, num_rows * row_bytes);
    return source == nullptr ? nullptr : target.data();
  };
  output_.rows = copy_rows(rows_, device.rows, device.row_bytes);
  output_.scales = copy_rows(scales_, device.scales, device.scale_bytes);
  output_.combine_rows = nullptr;
  output_.src_rank = copy_values(stream, src_rank_, device.src_rank, num_rows);
  output_.src_token = copy_values(stream, src_token_, device.src_token, num_rows);
  output_.local_expert_ids = copy_values(stream, local_expert_ids_, device.local_expert_ids, num_rows * per_row);
  output_.weights = copy_values(stream, weights_, device.weights, num_rows * per_row);
  output_.expert_counts = copy_values(stream, expert_counts_, device.expert_counts, num_experts);
  output_.expert_begin = copy_values(stream, expert_begin_, device.expert_begin, num_experts + 1);
  output_.expert_dropped = copy_values(stream, expert_dropped_, device.expert_dropped, num_experts);
  wait_for_stream(stream);
}

}  // namespace epistle
