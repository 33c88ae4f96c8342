#include "measure/bench_inputs.hpp"

namespace epistle {

BenchInputs::BenchInputs(const Shape& shape) : shape_(shape) {
  const LayoutParams params = to_layout_params(shape.config, 1);
  row_bytes_ = shape.config.input_row_bytes();
  scale_row_bytes_ = shape.config.quantises ? 0 : params.scale_bytes;
  output_row_bytes_ = params.combine_row_bytes;
  rows_.resize(static_cast<std::size_t>(shape.num_tokens * row_bytes_));
  scales_.resize(static_cast<std::size_t>(shape.num_tokens * scale_row_bytes_));
  out_.resize(static_cast<std::size_t>(shape.num_tokens * output_row_bytes_));
  for (std::int64_t token = 0; token < shape.num_tokens; ++token) {
    fill_token(shape.rank, token, rows_.data() + token * row_bytes_);
    fill_bytes(key(RowStream::kScales, shape.rank, token), scales_.data() + token * scale_row_bytes_, scale_row_bytes_);
  }
}

void BenchInputs::fill_token(int rank, std::int64_t token, std::byte* row) const noexcept {
  const RowKey payload = key(RowStream::kPayload, rank, token);
  if (shape_.config.quantises) return fill_values(payload, shape_.config.dtype, row, row_bytes_);
  fill_bytes(payload, row, row_bytes_);
}

ConstRows BenchInputs::tokens_at(const void* rows) const noexcept {
  return {.data = rows, .num_rows = shape_.num_tokens, .hidden = shape_.config.hidden, .dtype = shape_.config.dtype};
}

ScalesView BenchInputs::scales_at(const void* scales) const noexcept {
  if (scale_row_bytes_ == 0) return {};
  return {.data = scales,
          .num_rows = shape_.num_tokens,
          .num_columns = shape_.config.scale_columns(),
          .format = shape_.config.scale_format()};
}

Rows BenchInputs::out_rows_at(void* out) const noexcept {
  return {.data = out,
          .num_rows = shape_.num_tokens,
          .hidden = shape_.config.combine_hidden,
          .dtype = shape_.config.combine_dtype};
}

void BenchInputs::fill_expert_outputs(std::byte* rows, std::int64_t num_rows) const noexcept {
  for (std::int64_t row = 0; row < num_rows; ++row) {
    fill_values(key(RowStream::kExpertOutput, shape_.rank, row), shape_.config.combine_dtype,
                rows + row * output_row_bytes_, output_row_bytes_);
  }
}

}  // namespace epistle
