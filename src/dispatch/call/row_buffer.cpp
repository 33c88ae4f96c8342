#include "dispatch/call/row_buffer.hpp"

#include "core/sole_owner.hpp"

namespace epistle {

void RowBufferPool::describe(const ResolvedConfig& config, std::int32_t idx, RowBuffer& buffer) {
  buffer.idx = idx;
  buffer.dtype = config.dtype;
  buffer.hidden = config.hidden;
  buffer.scale_columns = scale_columns(config);
  buffer.scale_format = config.dtype == DType::kRaw ? ScaleFormat::kBytes : ScaleFormat::kFp32;
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
