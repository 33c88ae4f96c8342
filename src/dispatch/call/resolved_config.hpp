// A dispatcher's configuration with its choices made: what the insides of the library work with.
#pragma once

#include <cstdint>
#include <string_view>

#include "epistle/config.hpp"
#include "epistle/placement.hpp"
#include "epistle/types.hpp"

#include "core/complaint.hpp"
#include "group/group_impl.hpp"
#include "layout/dispatch_layout.hpp"
#include "layout/fp8_blocks.hpp"

namespace epistle {

struct ResolvedConfig {
  std::int64_t hidden = 0;
  DType dtype = DType::kBf16;  ///< of rows given to dispatch
  std::int64_t raw_scale_bytes = 0;
  bool quantises = false;  ///< rows become fp8 on their way
  Fp8Blocks quantised;     ///< how; powers_of_two holds whatever the format
  std::int32_t num_experts = 0;
  std::int32_t top_k = 0;
  std::int64_t max_tokens = 0;
  OutputLayout layout = OutputLayout::kTokenMajor;
  std::int32_t alignment = 1;
  SizingMode sizing = SizingMode::kExact;
  std::int64_t capacity_rows = 0;  ///< of a rank; kExpertBlocks: of a local expert, whatever the sizing
  OverflowPolicy overflow = OverflowPolicy::kError;
  SumOrder order = SumOrder::kHierarchical;
  bool apply_weights = true;
  bool zero_padding = true;
  DType combine_dtype = DType::kBf16;
  std::int64_t combine_hidden = 0;  ///< 0 = nothing is ever combined
  std::int32_t num_buffers = 1;
  std::int32_t max_handles = 8;
  Placement placement;              ///< at first; trivial only where slots_per_rank is 0
  std::int32_t slots_per_rank = 0;  ///< of every rank, in use or not; 0: experts are not placed
  std::int32_t domain_size = 0;     ///< of the group; 0 = all ranks are in one
  bool spans_hosts = false;         ///< the group does

  [[nodiscard]] std::int32_t ranks_of_domain(int num_ranks) const noexcept {
    return domain_size > 0 ? domain_size : num_ranks;
  }
  [[nodiscard]] bool places_experts() const noexcept { return slots_per_rank > 0; }
  /// What the layout has one column of rows for: experts, or slots where these are placed. Slots of a rank have
  /// consecutive numbers, and all ranks as many, so that the rank of a slot is arithmetic whatever the placement.
  [[nodiscard]] std::int32_t num_columns(int num_ranks) const noexcept {
    return places_experts() ? slots_per_rank * num_ranks : num_experts;
  }
  /// Of a row given to dispatch.
  [[nodiscard]] std::int64_t input_row_bytes() const noexcept { return hidden * dtype_bytes(dtype); }
  /// Of rows as they travel and are received.
  [[nodiscard]] DType wire_dtype() const noexcept { return quantises ? DType::kFp8E4m3 : dtype; }
  /// Of the scales of those rows, in rows.
  [[nodiscard]] ScaleFormat scale_format() const noexcept {
    if (quantises) return quantised.scales;
    return dtype == DType::kRaw ? ScaleFormat::kBytes : ScaleFormat::kFp32;
  }
  /// Scales of a received row: of its blocks, or opaque bytes of kRaw.
  [[nodiscard]] std::int64_t scale_columns() const noexcept {
    return wire_dtype() == DType::kFp8E4m3 ? fp8::num_scales(hidden) : raw_scale_bytes;
  }
};

/// Throws kInvalidArgument or kUnsupported. `domain_size`: 0 = all ranks are in one domain. An order that is not set is
/// kHierarchical: whoever knows the dispatcher fills in its own before (see with_order_of).
[[nodiscard]] ResolvedConfig resolve_config(const DispatcherConfig& config, int num_ranks, int domain_size = 0);

/// What of the layout's parameters follows from the configuration.
[[nodiscard]] LayoutParams to_layout_params(const ResolvedConfig& resolved, int num_ranks);

/// What a dispatcher is looked up by.
struct DispatcherName {
  std::string_view name;
  Device device = Device::kHost;
};

/// Collective: every rank learns whether all ranks have the same valid configuration. Throws this rank's own complaint;
/// or kPeerRejected where another rank has one; or kShapeMismatch that names the field.
void agree_on_config(GroupImpl& group, const ResolvedConfig& config, const DispatcherName& name,
                     const Complaint& complaint);

}  // namespace epistle
