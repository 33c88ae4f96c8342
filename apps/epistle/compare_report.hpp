// What `epistle compare` shows of a document, of a run or of stored ones.
#pragma once

#include <string>

#include "json_text.hpp"

namespace epistle::cli {

[[nodiscard]] std::string render_compare_table(const Json& document);
[[nodiscard]] std::string render_compare_page(const Json& document);

}  // namespace epistle::cli
