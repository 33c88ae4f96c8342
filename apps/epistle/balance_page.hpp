// The report of `epistle balance`.
#pragma once

#include <string>

#include "json_text.hpp"

namespace epistle::cli {

/// Of a record that balance_json gave: what the page shows are its numbers.
[[nodiscard]] std::string render_balance_page(const Json& record);

}  // namespace epistle::cli
