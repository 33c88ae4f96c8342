// JSON as every command writes it.
#pragma once

#include <string>

#include <nlohmann/json.hpp>

namespace epistle::cli {

using Json = nlohmann::ordered_json;

/// Bytes that are no UTF-8, which file names may hold, become U+FFFD.
[[nodiscard]] inline std::string json_text(const Json& document) {
  constexpr int kIndent = 2;
  return document.dump(kIndent, ' ', false, Json::error_handler_t::replace);
}

}  // namespace epistle::cli
