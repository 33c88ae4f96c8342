#include "number_options.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <system_error>

#include <fmt/format.h>

#include "output.hpp"

namespace epistle::cli {
namespace {

template <typename Number>
[[noreturn]] void reject(std::string_view option, std::string_view text, std::string_view grammar,
                         NumberRange<Number> range) {
  throw CLI::ValidationError(
      fmt::format("{} is '{}'; it takes {} from {} to {}", option, shortened(text), grammar, range.min, range.max));
}

/// Takes all of `text`, or nothing.
template <typename Number>
bool read_all(std::string_view text, Number& value) {
  const char* const end = text.data() + text.size();
  const auto result = std::from_chars(text.data(), end, value);
  return result.ec == std::errc() && result.ptr == end;
}

}  // namespace

std::string long_name(const std::string& names) { return names.substr(names.find(',') + 1); }

std::int64_t parse_integer(std::string_view option, std::string_view text, NumberRange<std::int64_t> range) {
  std::int64_t value = 0;
  if (!read_all(text, value) || value < range.min || value > range.max) {
    reject(option, text, "a whole number", range);
  }
  return value;
}

double parse_real(std::string_view option, std::string_view text, NumberRange<double> range) {
  double value = 0.0;
  // Written so that a NaN, which compares with nothing, is refused.
  if (!read_all(text, value) || !(value >= range.min && value <= range.max)) reject(option, text, "a number", range);
  return value;
}

std::vector<std::int64_t> parse_integers(std::string_view option, std::string_view text,
                                         NumberRange<std::int64_t> range) {
  std::vector<std::int64_t> values;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    std::int64_t value = 0;
    if (!read_all(text.substr(begin, end - begin), value) || value < range.min || value > range.max) {
      reject(option, text, "a whole number, or several separated by commas,", range);
    }
    values.push_back(value);
    begin = end + 1;
  }
  return values;
}

CLI::Option* add_number(CLI::App& command, const std::string& names, double& value, NumberRange<double> range,
                        const std::string& description) {
  const auto set = [&value, range, option = long_name(names)](const CLI::results_t& texts) {
    value = parse_real(option, texts.front(), range);
    return true;
  };
  return command.add_option(names, set, description);
}

CLI::Option* add_numbers(CLI::App& command, const std::string& names, std::vector<std::int64_t>& values,
                         NumberRange<std::int64_t> range, const std::string& description) {
  const auto set = [&values, range, option = long_name(names)](const CLI::results_t& texts) {
    values = parse_integers(option, texts.front(), range);
    return true;
  };
  return command.add_option(names, set, description);
}

}  // namespace epistle::cli
