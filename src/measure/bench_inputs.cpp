#include "measure/bench_inputs.hpp"

namespace epistle {

BenchInputs::BenchInputs(const Shape& shape)
    : shape_(shape),
      rows_(static_cast<std::size_t>(shape.num_tokens * shape.row_bytes)),
      scales_(static_cast<std::size_t>(shape.num_tokens * shape.scale_bytes)),
      out_(static_cast<std::size_t>(shape.num_tokens * shape.combine_row_bytes)) {
  for (std::int64_t token = 0; token < shape.num_tokens; ++token) {
    fill_bytes(key(RowStream::kPayload, shape.rank, token), rows_.data() + token * shape.row_bytes, shape.row_bytes);
    fill_bytes(key(RowStream::kScales, shape.rank, token), scales_.data() + token * shape.scale_bytes,
               shape.scale_bytes);
  }
}

void BenchInputs::fill_expert_outputs(std::byte* rows, std::int64_t num_rows) const noexcept {
  for (std::int64_t row = 0; row < num_rows; ++row) {
    fill_values(key(RowStream::kExpertOutput, shape_.rank, row), shape_.combine_dtype,
                rows + row * shape_.combine_row_bytes, shape_.combine_row_bytes);
  }
}

}  // namespace epistle
