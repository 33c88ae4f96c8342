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

/// A field that is a string; empty where there is none of that name.
[[nodiscard]] inline std::string text_at(const Json& object, const char* name) {
  const auto found = object.find(name);
  return found != object.end() && found->is_string() ? found->get<std::string>() : std::string();
}

/// The last line of a program's output that is not empty.
[[nodiscard]] inline std::string last_line_of(const std::string& text) {
  const std::size_t end = text.find_last_not_of("\r\n ");
  if (end == std::string::npos) return {};
  const std::size_t begin = text.rfind('\n', end);
  const std::size_t start = begin == std::string::npos ? 0 : begin + 1;
  return text.substr(start, end - start + 1);
}

/// The object that a program has printed last; null where that is none.
[[nodiscard]] inline Json object_in_last_line(const std::string& text) {
  const Json answer = Json::parse(last_line_of(text), nullptr, false);
  return answer.is_object() ? answer : Json();
}

}  // namespace epistle::cli
