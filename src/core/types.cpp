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
    case OutputLayout::kExpertSlots:
      return "expert_slots";
  }
  return "unknown";
}

std::string_view to_string(Sizing sizing) noexcept { return sizing == Sizing::kExact ? "exact" : "capacity"; }

std::string_view to_string(OverflowPolicy policy) noexcept {
  return policy == OverflowPolicy::kError ? "error" : "drop";
}

std::string_view to_string(CombineMode mode) noexcept {
  return mode == CombineMode::kHierarchical ? "hierarchical" : "flat";
}

std::string_view to_string(GroupKind kind) noexcept { return kind == GroupKind::kThreads ? "threads" : "processes"; }

}  // namespace epistle
