// Numbers with units, as people read them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace epistle {

/// Binary units, one decimal where the value is not whole: "512 B", "1.5 MiB", "64 KiB".
[[nodiscard]] std::string format_bytes(std::int64_t num_bytes);

/// Three significant digits: "0.42 us", "12.3 us", "4.56 ms", "7.89 s".
[[nodiscard]] std::string format_us(double duration_us);

/// Decimal units, three significant digits: "12.3 GB/s", "456 MB/s".
[[nodiscard]] std::string format_rate(double bytes_per_s);

/// Thousands apart: "1,234,567".
[[nodiscard]] std::string format_count(std::int64_t count);

/// "12.3%"
[[nodiscard]] std::string format_percent(double fraction);

/// Minutes and seconds, hours where there are any: "0:07", "12:34", "1:02:03".
[[nodiscard]] std::string format_clock(double seconds);

/// Columns that `text` takes on a terminal, for UTF-8 without combining or wide characters.
[[nodiscard]] std::size_t display_width(std::string_view text) noexcept;

}  // namespace epistle
