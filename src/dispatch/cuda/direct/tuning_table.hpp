// The tuning table: data only. A call takes the first row that fits it. Each row says what it was measured on and what
// it gained; a new GPU or a new size gets a new row, not new code.
#pragma once

#include <cstdint>
#include <limits>
#include <string_view>

#include "dispatch/cuda/engine/tuning.hpp"

namespace epistle::cuda {

enum class LayoutClass : std::int32_t { kTokenMajor, kExpertRows };

struct TuningRow {
  TunedCall call;
  LayoutClass layout;
  std::string_view bucket;  ///< small, medium, large: by tokens of the calling rank
  std::int64_t max_tokens;
  std::int64_t max_row_bytes;  ///< the row is for token rows up to this size
  int max_sms;                 ///< and for budgets up to this many SMs
  int default_sms;             ///< without a budget
  int peer_permille;           ///< of the blocks, those that serve peers; 1000 = all blocks do everything
  bool bulk;                   ///< bulk copies through shared memory, where the GPU has them
  std::string_view measured;
};

inline constexpr std::int64_t kAnyTokens = std::numeric_limits<std::int64_t>::max();
inline constexpr std::int64_t kAnyRow = std::numeric_limits<std::int64_t>::max();
inline constexpr int kAnySms = std::numeric_limits<int>::max();

// 2 x H200 (NVLink, 18 links), driver 580.159.04, 2026-11-22, medians by bench/cuda_tuning --loop, top-8; 4096 tokens
// of hidden 7168 in bf16 and 256 experts unless said otherwise. bench/records/tuning-sweeps.txt has the sweeps.
inline constexpr TuningRow kTuningTable[] = {
    {TunedCall::kDispatch, LayoutClass::kTokenMajor, "small", 256, kAnyRow, kAnySms, 16, 1000, false,
     "128 tokens, 16 SMs: 12.2 us, 132: 12.5; split by destination 12.8, bulk copies 13.3"},
    {TunedCall::kDispatch, LayoutClass::kTokenMajor, "medium", 1024, kAnyRow, 12, 8, 1000, true,
     "512 tokens, 8 SMs: 42.8 us; 16-byte stores 43.8, split by destination 48.6"},
    {TunedCall::kDispatch, LayoutClass::kTokenMajor, "medium", 1024, kAnyRow, 24, 16, 500, true,
     "512 tokens, 16 SMs: 28.4 us; 16-byte stores 29.7, not split 29.8"},
    {TunedCall::kDispatch, LayoutClass::kTokenMajor, "medium", 1024, kAnyRow, kAnySms, 32, 500, false,
     "1024 tokens, 32 SMs: 49.0 us, 132: 47.6; bulk copies 49.7, not split 52.6"},
    {TunedCall::kDispatch, LayoutClass::kTokenMajor, "large", kAnyTokens, kAnyRow, 12, 8, 1000, true,
     "8 SMs: 287 us; 16-byte stores 293, split by destination 331"},
    {TunedCall::kDispatch, LayoutClass::kTokenMajor, "large", kAnyTokens, kAnyRow, 20, 16, 1000, false,
     "16 SMs: 170 us, fp8 92; bulk copies 172 and 95, split by destination 171 and 95"},
    {TunedCall::kDispatch, LayoutClass::kTokenMajor, "large", kAnyTokens, 4096, kAnySms, 24, 1000, false,
     "hidden 2048, fp8, 128 experts, 24 and 32 SMs: 32 us; split by destination 43 and 35, bulk copies 35"},
    {TunedCall::kDispatch, LayoutClass::kTokenMajor, "large", kAnyTokens, kAnyRow, kAnySms, 32, 500, false,
     "24, 32 and 132 SMs: 168 us; bulk copies 169 to 170, not split 171, 171 and 168"},
    {TunedCall::kDispatch, LayoutClass::kExpertRows, "small", 256, kAnyRow, kAnySms, 64, 300, false,
     "128 tokens, 64 SMs: 26.2 us, 32: 28.6, 132: 26.5; bulk copies 26.5"},
    {TunedCall::kDispatch, LayoutClass::kExpertRows, "large", kAnyTokens, kAnyRow, 64, 32, 300, false,
     "32 SMs: 310 us, 64: 207; 40% for peers 316 and 201"},
    {TunedCall::kDispatch, LayoutClass::kExpertRows, "large", kAnyTokens, kAnyRow, kAnySms, 132, 300, false,
     "132 SMs: 181 us; 40% for peers 185, 20% 197; 512 tokens 41"},
    {TunedCall::kColdDispatch, LayoutClass::kTokenMajor, "small", 256, kAnyRow, kAnySms, 16, 500, false,
     "128 tokens, 16 SMs: 33.6 us, 132: 36.2; not split 34.2"},
    {TunedCall::kColdDispatch, LayoutClass::kTokenMajor, "large", kAnyTokens, 4096, kAnySms, 24, 1000, false,
     "hidden 2048, fp8, 128 experts, 24 SMs: 46.6 us, 32: 51.8; split by destination 59.0 and 50.1"},
    {TunedCall::kColdDispatch, LayoutClass::kTokenMajor, "large", kAnyTokens, kAnyRow, 20, 16, 1000, false,
     "8 SMs: 307 us, 16: 183, fp8 107; bulk copies 307, 187 and 110, split by destination 354, 189 and 112"},
    {TunedCall::kColdDispatch, LayoutClass::kTokenMajor, "large", kAnyTokens, kAnyRow, kAnySms, 32, 500, false,
     "24 SMs: 182 us, 32: 183, 132: 184; bulk copies 186 to 189, not split 183 to 186"},
    {TunedCall::kColdDispatch, LayoutClass::kExpertRows, "small", 256, kAnyRow, kAnySms, 64, 400, false,
     "128 tokens, 64 SMs: 50.9 us, 32: 51.6, 132: 50.3; bulk copies 51.0"},
    {TunedCall::kColdDispatch, LayoutClass::kExpertRows, "large", kAnyTokens, kAnyRow, 64, 32, 300, false,
     "32 SMs: 329 us, 64: 228; 40% for peers 336 and 223"},
    {TunedCall::kColdDispatch, LayoutClass::kExpertRows, "large", kAnyTokens, kAnyRow, kAnySms, 132, 300, false,
     "132 SMs: 203 us; 40% for peers 206, 20% 216; 512 tokens 64"},
    {TunedCall::kCombine, LayoutClass::kTokenMajor, "small", 256, kAnyRow, kAnySms, 32, 1000, true,
     "128 tokens, 32 SMs: 13.5 us, 8: 17.5, 132: 13.8; 16-byte loads 28.0"},
    {TunedCall::kCombine, LayoutClass::kTokenMajor, "large", kAnyTokens, kAnyRow, kAnySms, 132, 1000, true,
     "16 SMs: 189 us, 32: 183, 132: 182; 16-byte loads 447, 265 and 184; 512 tokens, 16 SMs: 29.9 and 54.6"},
    {TunedCall::kCombine, LayoutClass::kExpertRows, "small", 256, kAnyRow, kAnySms, 132, 400, true,
     "128 tokens, 132 SMs: 46.4 us, 64: 46.8, 32: 51.7; 16-byte loads 56.6"},
    {TunedCall::kCombine, LayoutClass::kExpertRows, "large", kAnyTokens, kAnyRow, 64, 64, 400, true,
     "32 SMs: 521 us, 64: 296; 30% for peers 631 and 364, half 571 and 316"},
    {TunedCall::kCombine, LayoutClass::kExpertRows, "large", kAnyTokens, kAnyRow, kAnySms, 132, 325, true,
     "132 SMs: 226 us; 30% for peers 232, 40% 237, half 246; 512 tokens 63.4"},
};

}  // namespace epistle::cuda
