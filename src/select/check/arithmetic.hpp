// Whole-number arithmetic as shells have it between $(( and )).
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string_view>

namespace epistle::check {

using LookUp = std::function<std::optional<std::int64_t>(std::string_view)>;

/// + - * / % and parentheses over numbers and names. Nothing where a name is not known, the text is something else, or
/// the value does not fit.
[[nodiscard]] std::optional<std::int64_t> evaluate_arithmetic(std::string_view text, const LookUp& look_up);

}  // namespace epistle::check
