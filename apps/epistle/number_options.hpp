// Numbers on the command line: one grammar and one range check for the options of all commands. A number is the one
// that was typed, or an error that names the option and what it takes.
//
// Whole numbers are decimal digits, with a '-' where negative ones make sense: 010 is ten, as in the environment
// variables. There is no '+', no space, no 0x, no exponent. Other numbers may have a fraction and an exponent; nan and
// inf are none.
#pragma once

#include <concepts>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include <CLI/CLI.hpp>

namespace epistle::cli {

inline constexpr std::int64_t kMaxInt32 = std::numeric_limits<std::int32_t>::max();

template <typename Number>
struct NumberRange {
  Number min;
  Number max;
};

/// Throw CLI::ValidationError. `option` is its name.
[[nodiscard]] std::int64_t parse_integer(std::string_view option, std::string_view text,
                                         NumberRange<std::int64_t> range);
[[nodiscard]] double parse_real(std::string_view option, std::string_view text, NumberRange<double> range);
/// Whole numbers, separated by commas.
[[nodiscard]] std::vector<std::int64_t> parse_integers(std::string_view option, std::string_view text,
                                                       NumberRange<std::int64_t> range);

/// "--ranks" of "-n,--ranks".
[[nodiscard]] std::string long_name(const std::string& names);

/// Adds an option that sets `value`, which must live as long as `command`.
template <std::integral Value>
CLI::Option* add_number(CLI::App& command, const std::string& names, Value& value, NumberRange<std::int64_t> range,
                        const std::string& description) {
  const auto set = [&value, range, option = long_name(names)](const CLI::results_t& texts) {
    value = static_cast<Value>(parse_integer(option, texts.front(), range));
    return true;
  };
  return command.add_option(names, set, description)->type_name("N");
}

CLI::Option* add_number(CLI::App& command, const std::string& names, double& value, NumberRange<double> range,
                        const std::string& description);
CLI::Option* add_numbers(CLI::App& command, const std::string& names, std::vector<std::int64_t>& values,
                         NumberRange<std::int64_t> range, const std::string& description);

}  // namespace epistle::cli
