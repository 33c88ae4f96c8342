// One of the buffers that a dispatcher receives into, and who holds it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "epistle/device/row_flags.hpp"
#include "epistle/types.hpp"
#include "epistle/views.hpp"

#include "dispatch/call/resolved_config.hpp"

namespace epistle {

class HandleState;

/// Where received rows, their scales and the expert outputs of one lease lie on this rank. What the views lack is the
/// number of rows, which the routing says.
class RowBuffer {
 public:
  enum class Holds : std::int32_t { kRows, kGradients };

  std::int32_t idx = 0;
  std::byte* rows = nullptr;
  std::byte* scales = nullptr;
  std::byte* outputs = nullptr;
  DType dtype = DType::kBf16;
  std::int64_t hidden = 0;
  std::int64_t scale_columns = 0;
  ScaleFormat scale_format = ScaleFormat::kFp32;  ///< in rows
  ScaleOrder scale_order = ScaleOrder::kRows;
  std::int64_t scale_row_bytes = 0;
  std::int64_t rows_per_block = 0;  ///< of expert blocks; otherwise 0
  DType output_dtype = DType::kBf16;
  std::int64_t output_hidden = 0;
  std::shared_ptr<const void> memory;   ///< keeps it mapped
  const HandleState* holder = nullptr;  ///< the handle whose rows it was filled with last
  device::RowFlags flags = {};          ///< without a number where the dispatcher has none
  bool raises_flags = false;            ///< the call that fills it does
};

/// The buffers of one dispatcher on this rank. A buffer is free when nobody but the pool holds it.
class RowBufferPool {
 public:
  RowBufferPool() = default;
  /// `place(idx)` gives the buffer of that number.
  template <typename Place>
  RowBufferPool(const ResolvedConfig& config, const Place& place) {
    for (std::int32_t idx = 0; idx < config.num_buffers; ++idx) {
      auto buffer = std::make_shared<RowBuffer>(place(idx));
      describe(config, idx, *buffer);
      buffers_.push_back(std::move(buffer));
    }
  }

  /// A free buffer; null where all are leased.
  [[nodiscard]] std::shared_ptr<RowBuffer> find_free() const noexcept;
  /// Where rows of `handle` can be read by other ranks: the buffer in whose outputs `rows` lies; otherwise one into
  /// whose outputs they can be copied, which is free or holds rows of the same handle. Null where there is none.
  [[nodiscard]] std::shared_ptr<RowBuffer> find_for_rows(const void* rows, const HandleState* handle) const noexcept;
  [[nodiscard]] std::size_t size() const noexcept { return buffers_.size(); }
  [[nodiscard]] const std::shared_ptr<RowBuffer>& at(std::int32_t idx) const noexcept {
    return buffers_[static_cast<std::size_t>(idx)];
  }

 private:
  static void describe(const ResolvedConfig& config, std::int32_t idx, RowBuffer& buffer);
  std::vector<std::shared_ptr<RowBuffer>> buffers_;
};

}  // namespace epistle
