#include "report/bar.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <string_view>

#include "core/ascii.hpp"

namespace epistle {
namespace {

constexpr int kEighths = 8;
// U+258F to U+2589: one to seven eighths, from the left.
constexpr std::array<std::string_view, kEighths - 1> kPartialBlocks = {"\u258f", "\u258e", "\u258d", "\u258c",
                                                                       "\u258b", "\u258a", "\u2589"};
constexpr std::string_view kFullBlock = "\u2588";

}  // namespace

BarStyle detect_bar_style() {
  // The first that is set and not empty decides (locale(7)).
  for (const char* const name : {"LC_ALL", "LC_CTYPE", "LANG"}) {
    const char* const value = std::getenv(name);
    if (value == nullptr || *value == '\0') continue;
    const std::string lower = to_lower(value);
    const bool utf8 = lower.find("utf-8") != std::string::npos || lower.find("utf8") != std::string::npos;
    return utf8 ? BarStyle::kUnicode : BarStyle::kAscii;
  }
  return BarStyle::kAscii;
}

std::string make_bar(double fraction, int width, BarStyle style) {
  if (!(fraction > 0.0) || width <= 0) return {};  // NaN draws nothing
  const double columns = std::min(fraction, 1.0) * width;
  if (style == BarStyle::kAscii) {
    return std::string(static_cast<std::size_t>(std::max(1L, std::lround(columns))), '#');
  }
  const long eighths = std::max(1L, std::lround(columns * kEighths));
  std::string bar;
  for (long i = 0; i < eighths / kEighths; ++i) bar += kFullBlock;
  if (eighths % kEighths > 0) bar += kPartialBlocks[static_cast<std::size_t>(eighths % kEighths - 1)];
  return bar;
}

}  // namespace epistle
