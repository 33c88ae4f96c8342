#include "select/check/shell_condition.hpp"

#include <algorithm>
#include <cstddef>
#include <string_view>

#include "select/check/config.hpp"

namespace epistle::check {
namespace {

std::optional<bool> compare_words(std::string_view left, std::string_view comparison, std::string_view right) {
  const bool equal = comparison == "=" || comparison == "==";
  if (equal || comparison == "!=") {
    // A pattern.
    if (right.find_first_of("*?[") != std::string_view::npos) return std::nullopt;
    return (left == right) == equal;
  }
  const auto first = parse_whole(left);
  const auto second = parse_whole(right);
  if (!first || !second) return std::nullopt;
  if (comparison == "-eq") return *first == *second;
  if (comparison == "-ne") return *first != *second;
  if (comparison == "-gt") return *first > *second;
  if (comparison == "-ge") return *first >= *second;
  if (comparison == "-lt") return *first < *second;
  if (comparison == "-le") return *first <= *second;
  return std::nullopt;
}

}  // namespace

std::optional<bool> evaluate_condition(const std::vector<LinedText>& words) {
  if (words.empty()) return std::nullopt;
  const std::string_view opening = words.front().bytes;
  const std::string_view closing = opening == "[" ? "]" : opening == "[[" ? "]]" : "";
  if (closing.empty() && opening != "test") return std::nullopt;
  std::size_t end = words.size();
  if (!closing.empty() && words[--end].bytes != closing) return std::nullopt;
  const bool known = std::all_of(words.begin(), words.end(), [](const LinedText& word) { return word.known; });
  if (!known) return std::nullopt;
  std::size_t at = 1;
  const bool inverted = at < end && words[at].bytes == "!";
  if (inverted) ++at;
  std::optional<bool> result;
  if (end - at == 1) {
    result = !words[at].bytes.empty();
  } else if (end - at == 2 && (words[at].bytes == "-n" || words[at].bytes == "-z")) {
    result = words[at + 1].bytes.empty() == (words[at].bytes == "-z");
  } else if (end - at == 3) {
    result = compare_words(words[at].bytes, words[at + 1].bytes, words[at + 2].bytes);
  }
  if (result && inverted) result = !*result;
  return result;
}

}  // namespace epistle::check
