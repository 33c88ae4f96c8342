// The tuning table: data only. A call takes the first row that fits it. Each row says what it was measured on and what
// it gained; a new GPU or a new size gets a new row, not new code.
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

// 2 x H200 (NVLink, 18 links), driver 580.159.04, 2026-11-22, medians of 35 by bench/cuda_tuning, 4096 tokens, top-8;
// hidden 7168 bf16 and 256 experts unless said otherwise. docs/tuning/cuda.md has the sweeps.
inline constexpr TuningRow kTuningTable[] = {
    {TunedCall::kDispatch, LayoutClass::kTokenMajor, "small", 256, kAnySms, 16, 1000, false, "as medium"},
    {TunedCall::kDispatch, LayoutClass::kTokenMajor, "medium", 1024, kAnySms, 16, 500, false, "as large"},
    {TunedCall::kDispatch, LayoutClass::kTokenMajor, "large", kAnyTokens, 12, 8, 1000, true,
     "8 SMs: 293 us; 16-byte stores 298, split by destination 344"},
    {TunedCall::kDispatch, LayoutClass::kTokenMajor, "large", kAnyTokens, 24, 16, 500, false,
     "16 SMs: 178 us; bulk copies 180, not split 200"},
    {TunedCall::kDispatch, LayoutClass::kTokenMajor, "large", kAnyTokens, kAnySms, 132, 500, false,
     "32 SMs: 180 us, 132: 172; bulk copies 174 at 132, not split 220 at 32"},
    {TunedCall::kDispatch, LayoutClass::kExpertRows, "small", 256, kAnySms, 64, 300, false, "as large"},
    {TunedCall::kDispatch, LayoutClass::kExpertRows, "large", kAnyTokens, 64, 32, 300, false,
     "32 SMs: 313 us; bulk copies 318, half for peers 332"},
    {TunedCall::kDispatch, LayoutClass::kExpertRows, "large", kAnyTokens, kAnySms, 132, 400, false,
     "132 SMs: 191 us; 15% for peers 230"},
    {TunedCall::kColdDispatch, LayoutClass::kTokenMajor, "small", 256, kAnySms, 16, 1000, false, "as large"},
    {TunedCall::kColdDispatch, LayoutClass::kTokenMajor, "large", kAnyTokens, 24, 16, 1000, false,
     "8 SMs: 310 us, 16: 192, fp8 at 16: 114; bulk copies 313, 196, 118; split by destination 358, 192, 123"},
    {TunedCall::kColdDispatch, LayoutClass::kTokenMajor, "large", kAnyTokens, kAnySms, 132, 500, false,
     "132 SMs: 193 us, split or not"},
    {TunedCall::kColdDispatch, LayoutClass::kExpertRows, "large", kAnyTokens, 64, 32, 300, false,
     "32 SMs: 333 us; 40% for peers 342"},
    {TunedCall::kColdDispatch, LayoutClass::kExpertRows, "large", kAnyTokens, kAnySms, 132, 400, false,
     "132 SMs: 207 us; 30% for peers 209"},
    {TunedCall::kCombine, LayoutClass::kTokenMajor, "small", 256, kAnySms, 32, 1000, true, "as large"},
    {TunedCall::kCombine, LayoutClass::kTokenMajor, "large", kAnyTokens, kAnySms, 132, 1000, true,
     "16 SMs: 193 us, 132: 188; 16-byte loads 458 and 190; pushed into a stage 383 and 193"},
    {TunedCall::kCombine, LayoutClass::kExpertRows, "small", 256, kAnySms, 132, 300, true, "as large"},
    {TunedCall::kCombine, LayoutClass::kExpertRows, "large", kAnyTokens, kAnySms, 132, 350, true,
     "132 SMs: 233 us; 25% for peers 253, 16-byte loads 291"},
};

}  // namespace epistle::cuda
