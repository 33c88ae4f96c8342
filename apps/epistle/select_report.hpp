// What epistle select prints.
#pragma once

#include <string>

#include "json_text.hpp"
#include "select/check/check.hpp"
#include "select/select.hpp"

namespace epistle::cli {

[[nodiscard]] Json selection_json(const SelectFacts& facts, const Selection& selection);
[[nodiscard]] std::string render_selection(const SelectFacts& facts, const Selection& selection);

[[nodiscard]] Json check_json(const check::ConfigFile& file, const check::CheckReport& report);
[[nodiscard]] std::string render_check(const check::ConfigFile& file, const check::CheckReport& report);

}  // namespace epistle::cli
