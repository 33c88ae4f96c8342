// Where a rank lays out what the others read in one exchange, at fixed places, whatever the routing: the routing
// itself, and under static shapes the rows. There are two sets of places, used in turn; docs/low_latency.md says why
// two are enough.
#pragma once

#include <cstdint>

#include "layout/buffer_plan.hpp"

namespace epistle::host {

class PublishedPlaces {
 public:
  explicit constexpr PublishedPlaces(const DispatchLayout& layout) noexcept
      : ids_bytes_(layout.params().max_tokens * layout.params().top_k *
                   static_cast<std::int64_t>(sizeof(std::int32_t))),
        rows_bytes_(row_tokens(layout) * layout.params().row_bytes),
        scales_bytes_(row_tokens(layout) * layout.params().scale_bytes) {}

  /// Adds what both sets take.
  constexpr void add_to(SectionBytes& bytes) const noexcept {
    bytes[BufferSection::kRecords] += kNumSets * 2 * ids_bytes_;
    bytes[BufferSection::kSendRows] += kNumSets * rows_bytes_;
    bytes[BufferSection::kSendScales] += kNumSets * scales_bytes_;
  }

  // Offsets in kRecords: int32 expert ids, then fp32 weights, [max_tokens, top_k] each.
  [[nodiscard]] constexpr std::int64_t ids_offset(std::uint64_t exchange) const noexcept {
    return set_of(exchange) * 2 * ids_bytes_;
  }
  [[nodiscard]] constexpr std::int64_t weights_offset(std::uint64_t exchange) const noexcept {
    return ids_offset(exchange) + ids_bytes_;
  }
  /// In kSendRows and kSendScales: one behind the other, by token.
  [[nodiscard]] constexpr std::int64_t rows_offset(std::uint64_t exchange) const noexcept {
    return set_of(exchange) * rows_bytes_;
  }
  [[nodiscard]] constexpr std::int64_t scales_offset(std::uint64_t exchange) const noexcept {
    return set_of(exchange) * scales_bytes_;
  }

 private:
  [[nodiscard]] static constexpr std::int64_t row_tokens(const DispatchLayout& layout) noexcept {
    return layout.params().sizing == SizingMode::kCapacity ? layout.params().max_tokens : 0;
  }
  [[nodiscard]] static constexpr std::int64_t set_of(std::uint64_t exchange) noexcept {
    return static_cast<std::int64_t>(exchange % DispatchLayout::kNumGenerations);
  }

  static constexpr std::int64_t kNumSets = DispatchLayout::kNumGenerations;

  std::int64_t ids_bytes_;
  std::int64_t rows_bytes_;
  std::int64_t scales_bytes_;
};

}  // namespace epistle::host
