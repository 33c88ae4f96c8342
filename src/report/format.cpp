#include "report/format.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <span>

#include <fmt/format.h>

namespace epistle {
namespace {

struct Unit {
  double scale;
  std::string_view name;
};

constexpr std::array<std::string_view, 6> kBinaryUnits = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
constexpr std::array<Unit, 3> kTimeUnits = {{{1.0, "us"}, {1e3, "ms"}, {1e6, "s"}}};
constexpr std::array<Unit, 5> kRateUnits = {
    {{1.0, "B/s"}, {1e3, "kB/s"}, {1e6, "MB/s"}, {1e9, "GB/s"}, {1e12, "TB/s"}}};

/// Three significant digits without an exponent; whole numbers from 100 on.
std::string three_digits(double value) {
  const double magnitude = std::fabs(value);
  // The limits lie where rounding would add a digit.
  if (magnitude >= 99.95) return fmt::format("{:.0f}", value);
  if (magnitude >= 9.995) return fmt::format("{:.1f}", value);
  return fmt::format("{:.2f}", value);
}

std::string with_unit(double value, std::span<const Unit> units) {
  // From here on a value would be written as 1000 of its unit.
  constexpr double kNextUnit = 999.5;
  std::size_t chosen = 0;
  while (chosen + 1 < units.size() && std::fabs(value) / units[chosen].scale >= kNextUnit) ++chosen;
  return fmt::format("{} {}", three_digits(value / units[chosen].scale), units[chosen].name);
}

}  // namespace

std::string format_bytes(std::int64_t num_bytes) {
  constexpr double kStep = 1024.0;
  constexpr double kNextUnit = 1023.95;  // one decimal would write it as 1024.0
  auto value = static_cast<double>(num_bytes);
  if (std::fabs(value) < kStep) return fmt::format("{} B", num_bytes);
  value /= kStep;
  std::size_t unit = 0;
  while (std::fabs(value) >= kNextUnit && unit + 1 < kBinaryUnits.size()) {
    value /= kStep;
    ++unit;
  }
  const bool whole = value == std::floor(value);
  return fmt::format("{:.{}f} {}", value, whole ? 0 : 1, kBinaryUnits[unit]);
}

std::string format_us(double duration_us) { return with_unit(duration_us, kTimeUnits); }

std::string format_rate(double bytes_per_s) { return with_unit(bytes_per_s, kRateUnits); }

std::string format_count(std::int64_t count) {
  std::string text = fmt::format("{}", count);
  constexpr std::ptrdiff_t kGroupDigits = 3;
  const std::ptrdiff_t digits_begin = count < 0 ? 1 : 0;
  for (auto place = static_cast<std::ptrdiff_t>(text.size()) - kGroupDigits; place > digits_begin;
       place -= kGroupDigits) {
    text.insert(static_cast<std::size_t>(place), 1, ',');
  }
  return text;
}

std::string format_percent(double fraction) {
  constexpr double kPercent = 100.0;
  return fmt::format("{:.1f}%", fraction * kPercent);
}

std::string format_clock(double seconds) {
  constexpr std::int64_t kMinute = 60;
  constexpr std::int64_t kHour = 60 * kMinute;
  const std::int64_t whole = std::llround(std::max(seconds, 0.0));
  if (whole >= kHour) {
    return fmt::format("{}:{:02}:{:02}", whole / kHour, whole % kHour / kMinute, whole % kMinute);
  }
  return fmt::format("{}:{:02}", whole / kMinute, whole % kMinute);
}

std::size_t display_width(std::string_view text) noexcept {
  // Bytes 10xxxxxx continue a character of UTF-8.
  constexpr unsigned kContinuationMask = 0xc0;
  constexpr unsigned kContinuation = 0x80;
  return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & kContinuationMask) != kContinuation;
  }));
}

}  // namespace epistle
