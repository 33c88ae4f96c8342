// What the condition of an "if" comes to, as far as its words are known.
#pragma once

#include <optional>
#include <vector>

#include "select/check/shell.hpp"

namespace epistle::check {

/// Of "[ ... ]", "[[ ... ]]" and "test ...": emptiness, and comparisons of texts and whole numbers. Nothing where a
/// word depends on a run, or the condition is another.
[[nodiscard]] std::optional<bool> evaluate_condition(const std::vector<LinedText>& words);

}  // namespace epistle::check
