// The report of `epistle bench`.
#pragma once

#include <string>

#include "json_text.hpp"

namespace epistle::cli {

/// Of a record that bench_json gave: what the page shows are its numbers.
[[nodiscard]] std::string render_bench_page(const Json& record);

}  // namespace epistle::cli
