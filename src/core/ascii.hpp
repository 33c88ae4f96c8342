// Text whose letters are ASCII, whatever the locale.
#pragma once

#include <string>
#include <string_view>

namespace epistle {

[[nodiscard]] inline std::string to_lower(std::string_view text) {
  std::string lower(text);
  for (char& character : lower) {
    if (character >= 'A' && character <= 'Z') character = static_cast<char>(character - 'A' + 'a');
  }
  return lower;
}

}  // namespace epistle
