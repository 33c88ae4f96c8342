#include "dispatch/reference/quantise.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "core/numeric.hpp"
#include "dispatch/reference/oracle.hpp"

namespace epistle::reference {
namespace {

constexpr std::size_t kNumMagnitudes = 127;  // 0 to 448; what follows is NaN

/// Magnitudes of e4m3, ascending: the value of the byte that is its index.
const std::array<double, kNumMagnitudes>& magnitudes() {
  static const std::array<double, kNumMagnitudes> all = [] {
    std::array<double, kNumMagnitudes> values{};
    for (std::size_t bits = 0; bits < values.size(); ++bits) {
      values[bits] = static_cast<double>(numeric::fp8_e4m3_to_fp32(static_cast<std::uint8_t>(bits)));
    }
    return values;
  }();
  return all;
}

/// The smallest e with 2^e >= value, as far as a scale can say it.
int ceil_log2(float value) {
  constexpr int kSmallest = -126;
  constexpr int kLargest = 127;
  if (std::isinf(value)) return kLargest;
  int exponent = 0;
  const float fraction = std::frexp(value, &exponent);  // in [0.5, 1)
  return std::clamp(fraction > 0.5F ? exponent : exponent - 1, kSmallest, kLargest);
}

std::vector<std::byte> bytes_of(float value) {
  std::vector<std::byte> bytes(sizeof(value));
  std::memcpy(bytes.data(), &value, sizeof(value));
  return bytes;
}

}  // namespace

QuantisedScale scale_of(const std::vector<float>& block, ScaleFormat format, bool powers_of_two) {
  constexpr float kLargest = 448.0F;
  constexpr float kInverseOfLargest = 1.0F / kLargest;
  float amax = 1e-4F;
  for (const float value : block) {
    // Not std::fmax: of a signalling NaN it makes a NaN.
    if (!std::isnan(value)) amax = std::max(amax, std::fabs(value));
  }
  const float scale = amax * kInverseOfLargest;
  if (!powers_of_two && format == ScaleFormat::kFp32) return {kLargest / amax, bytes_of(scale)};
  constexpr int kExponentBias = 127;
  const int exponent = ceil_log2(scale);
  const float inverse = std::ldexp(1.0F, -exponent);
  if (format == ScaleFormat::kFp32) return {inverse, bytes_of(std::ldexp(1.0F, exponent))};
  return {inverse, {static_cast<std::byte>(exponent + kExponentBias)}};
}

std::uint8_t nearest_e4m3(float value) {
  constexpr std::uint8_t kNan = 0x7f;
  constexpr std::uint8_t kSign = 0x80;
  if (std::isnan(value)) return kNan;
  const auto& all = magnitudes();
  const double magnitude = std::min(std::fabs(static_cast<double>(value)), all.back());
  const double* const above = std::lower_bound(all.data(), all.data() + all.size(), magnitude);
  auto nearest = static_cast<std::size_t>(above - all.data());
  if (nearest > 0) {
    const double to_above = *above - magnitude;
    const double to_below = magnitude - all[nearest - 1];
    const bool is_tie = to_above == to_below;
    if (to_below < to_above || (is_tie && (nearest - 1) % 2 == 0)) --nearest;
  }
  return static_cast<std::uint8_t>(nearest | (std::signbit(value) ? kSign : 0U));
}

void quantise_row(const ResolvedConfig& config, const std::byte* row, std::byte* target, std::byte* scales) {
  const std::int64_t scale_bytes = to_layout_params(config, 1).scale_bytes;
  std::fill_n(scales, scale_bytes, std::byte{0});
  std::vector<float> block;
  for (std::int64_t begin = 0; begin < config.hidden; begin += kScaleBlockElements) {
    const std::int64_t end = std::min(begin + kScaleBlockElements, config.hidden);
    block.clear();
    for (std::int64_t idx = begin; idx < end; ++idx) block.push_back(read_element(config.dtype, row, idx));
    const QuantisedScale scale = scale_of(block, config.quantised.scales, config.quantised.powers_of_two);
    scales = std::copy(scale.bytes.begin(), scale.bytes.end(), scales);
    for (std::int64_t idx = begin; idx < end; ++idx) {
      target[idx] = static_cast<std::byte>(nearest_e4m3(block[static_cast<std::size_t>(idx - begin)] * scale.inverse));
    }
  }
}

}  // namespace epistle::reference
