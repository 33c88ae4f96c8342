#include "epistle/types.hpp"

namespace epistle {

std::string_view to_string(DType dtype) noexcept {
  switch (dtype) {
    case DType::kBf16:
      return "bf16";
    case DType::kFp16:
      return "fp16";
    case DType::kFp32:
      return "fp32";
    case DType::kFp8E4m3:
      return "fp8";
    case DType::kRaw:
      return "raw";
  }
  return "unknown";
}

std::string_view to_string(OutputLayout layout) noexcept {
  switch (layout) {
    case OutputLayout::kTokenMajor:
      return "token_major";
    case OutputLayout::kExpertMajor:
      return "expert_major";
    case OutputLayout::kExpertBlocks:
      return "expert_blocks";
  }
  return "unknown";
}

std::string_view to_string(SizingMode sizing) noexcept { return sizing == SizingMode::kExact ? "exact" : "capacity"; }

std::string_view to_string(OverflowPolicy policy) noexcept {
  return policy == OverflowPolicy::kError ? "error" : "drop";
}

std::string_view to_string(SumOrder order) noexcept {
  switch (order) {
    case SumOrder::kHierarchical:
      return "hierarchical";
    case SumOrder::kFlat:
      return "flat";
    case SumOrder::kDeepEpV2:
      return "deepep_v2";
    case SumOrder::kDomains:
      return "domains";
  }
  return "unknown";
}

std::string_view to_string(Device device) noexcept { return device == Device::kHost ? "host" : "cuda"; }

std::string_view to_string(ScaleFormat format) noexcept {
  switch (format) {
    case ScaleFormat::kFp32:
      return "fp32";
    case ScaleFormat::kUe8m0:
      return "ue8m0";
    case ScaleFormat::kUe8m0x4:
      return "ue8m0x4";
    case ScaleFormat::kBytes:
      return "bytes";
  }
  return "unknown";
}

std::string_view to_string(ScaleOrder order) noexcept { return order == ScaleOrder::kRows ? "rows" : "columns"; }

std::string_view to_string(GroupKind kind) noexcept { return kind == GroupKind::kThreads ? "threads" : "processes"; }

}  // namespace epistle
