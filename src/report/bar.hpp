// Small horizontal bars.
#pragma once

#include <cstdint>
#include <string>

namespace epistle {

enum class BarStyle : std::int32_t {
  kAscii,    ///< '#', to a whole column
  kUnicode,  ///< block characters, to an eighth of a column
};

/// kUnicode where the locale (LC_ALL, LC_CTYPE, LANG) is UTF-8.
[[nodiscard]] BarStyle detect_bar_style();

/// A bar of `fraction` (clamped to [0, 1]) of `width` columns, not padded. A fraction above 0 is always visible.
[[nodiscard]] std::string make_bar(double fraction, int width, BarStyle style);

}  // namespace epistle
