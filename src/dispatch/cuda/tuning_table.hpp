// The tuning table: data only. A call takes the first row that fits it. Each row says what it was measured on and what it
// gained; a new GPU or a new size gets a new row, not new code.
#pragma once

#include <cstdint>
#include <limits>
#include <string_view>

#include "dispatch/cuda/tuning.hpp"

namespace epistle::cuda {

enum class LayoutClass : std::int32_t { kTokenMajor, kExpertRows };

struct TuningRow {
  TunedCall call;
  LayoutClass layout;
  std::string_view bucket;  ///< small, medium, large: by tokens of the calling rank
  std::int64_t max_tokens;
  int max_sms;        ///< the row is for budgets up to this many SMs
  int default_sms;    ///< without a budget
  int peer_permille;  ///< of the blocks, those that serve peers; 1000 = all blocks do everything
  bool bulk;          ///< bulk copies through shared memory, where the GPU has them
  std::string_view measured;
};

inline constexpr std::int64_t kAnyTokens = std::numeric_limits<std::int64_t>::max();
inline constexpr int kAnySms = std::numeric_limits<int>::max();

inline constexpr TuningRow kTuningTable[] = {
    {TunedCall::kDispatch, LayoutClass::kTokenMajor, "large", kAnyTokens, kAnySms, 24, 500, false, "not measured yet"},
    {TunedCall::kDispatch, LayoutClass::kExpertRows, "large", kAnyTokens, kAnySms, 132, 200, false, "not measured yet"},
    {TunedCall::kCombine, LayoutClass::kTokenMajor, "large", kAnyTokens, kAnySms, 24, 500, false, "not measured yet"},
    {TunedCall::kCombine, LayoutClass::kExpertRows, "large", kAnyTokens, kAnySms, 132, 300, false, "not measured yet"},
};

}  // namespace epistle::cuda
