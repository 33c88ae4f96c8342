#include "dispatch/call/row_buffer.hpp"

#include "core/sole_owner.hpp"

namespace epistle {

void RowBufferPool::describe(const ResolvedConfig& config, std::int32_t idx, RowBuffer& buffer) {
  buffer.idx = idx;
  buffer.dtype = config.wire_dtype();
  buffer.hidden = config.hidden;
  buffer.scale_columns = config.scale_columns();
  buffer.scale_format = config.scale_format();
  buffer.scale_order = config.quantised.order;
  buffer.scale_row_bytes = to_layout_params(config, 1).scale_bytes;
  buffer.rows_per_block = config.layout == OutputLayout::kExpertBlocks ? config.capacity_rows : 0;
  buffer.output_dtype = config.combine_dtype;
  buffer.output_hidden = config.combine_hidden;
}

std::shared_ptr<RowBuffer> RowBufferPool::find_free() const noexcept {
  for (const auto& buffer : buffers_) {
    if (is_sole_owner(buffer)) return buffer;
  }
  return nullptr;
}

std::shared_ptr<RowBuffer> RowBufferPool::find_for_rows(const void* rows, const HandleState* handle) const noexcept {
  for (const auto& buffer : buffers_) {
    if (rows != nullptr && buffer->outputs == rows) return buffer;
  }
  if (auto buffer = find_free()) return buffer;
  for (const auto& buffer : buffers_) {
    if (buffer->holder == handle) return buffer;
  }
  return nullptr;
}

}  // namespace epistle
