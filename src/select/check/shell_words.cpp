#include "select/check/shell_words.hpp"

#include <algorithm>
#include <cctype>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "epistle/error.hpp"

#include "select/check/arithmetic.hpp"
#include "select/check/config.hpp"

namespace epistle::check {
namespace {

/// Variables can name each other: what they grow to in all is bounded.
constexpr std::size_t kMaxExpandedBytes = std::size_t{4} << 20;
constexpr int kMaxNesting = 16;

LinedText unknown(std::string_view name, std::int32_t at_line) {
  LinedText text;
  for (const char byte : name) text.add(byte, at_line);
  text.known = false;
  return text;
}

bool ends_word(char byte) noexcept {
  return is_shell_space(byte) || byte == ';' || byte == '&' || byte == '|' || byte == '(' || byte == ')' ||
         byte == '<' || byte == '>';
}

}  // namespace

bool is_name_start(char byte) noexcept { return std::isalpha(static_cast<unsigned char>(byte)) != 0 || byte == '_'; }
bool is_name_byte(char byte) noexcept { return std::isalnum(static_cast<unsigned char>(byte)) != 0 || byte == '_'; }
bool is_shell_space(char byte) noexcept { return byte == ' ' || byte == '\t' || byte == '\n' || byte == '\r'; }

/// Fields that are done, and the one that is being read.
struct ShellWords::Word {
  ShellFields fields;
  LinedText field;
  bool open = false;  ///< also where it is empty, between quotes

  void close() {
    if (open) fields.push_back(std::move(field));
    field = {};
    open = false;
  }
};

std::int32_t ShellWords::line() const noexcept {
  if (text_.lines.empty()) return 0;
  return text_.lines[std::min(at_, size() - 1)];
}

void ShellWords::fail(std::int32_t at_line, const std::string& what) const {
  throw Error(ErrorCode::kCorruptInput, fmt::format("{}:{}: {}", file_, at_line, what));
}

void ShellWords::skip_parentheses() {
  int depth = 0;
  while (at_ < size()) {
    const char byte = text_.bytes[at_++];
    if (byte == '(') ++depth;
    if (byte == ')' && --depth <= 0) return;
  }
}

ShellFields ShellWords::read_word(bool split) {
  Word word;
  while (at_ < size() && !ends_word(peek())) {
    const char byte = peek();
    if (byte == '\\') {
      if (peek(1) == '\n' || peek(1) == '\0') {
        at_ = std::min(at_ + 2, size());
        continue;
      }
      word.field.add(peek(1), line());
      at_ += 2;
    } else if (byte == '\'') {
      read_single_quotes(word.field);
    } else if (byte == '"') {
      read_double_quotes(word);
    } else if (byte == '`') {
      const std::size_t before = word.field.bytes.size();
      read_backticks(word.field);
      if (word.field.bytes.size() == before) continue;
    } else if (byte == '$') {
      add_expansion(expand(0), split, word);
      continue;
    } else {
      word.field.add(byte, line());
      ++at_;
    }
    word.open = true;
  }
  word.close();
  return std::move(word.fields);
}

void ShellWords::add_expansion(const ShellFields& pieces, bool split, Word& word) {
  for (std::size_t idx = 0; idx < pieces.size(); ++idx) {
    const LinedText& piece = pieces[idx];
    if (idx > 0 && split) word.close();
    if (idx > 0 && !split) word.field.add(' ', piece.line());
    for (std::size_t byte = 0; byte < piece.bytes.size(); ++byte) {
      if (split && piece.known && is_shell_space(piece.bytes[byte])) {
        word.close();
      } else {
        word.field.add(piece.bytes[byte], piece.lines[byte]);
        word.open = true;
      }
    }
    word.field.known = word.field.known && piece.known;
    word.field.assumed = word.field.assumed || piece.assumed;
  }
}

void ShellWords::read_single_quotes(LinedText& field) {
  const std::int32_t begin_line = line();
  for (++at_; at_ < size() && peek() != '\''; ++at_) field.add(peek(), line());
  if (at_ >= size()) fail(begin_line, "a single quote that opens here is not closed");
  ++at_;
}

void ShellWords::read_double_quotes(Word& word) {
  const std::int32_t begin_line = line();
  ++at_;
  while (at_ < size() && peek() != '"') {
    if (peek() == '\\' && peek(1) == '\n') {
      at_ += 2;
    } else if (peek() == '\\' && (peek(1) == '"' || peek(1) == '\\' || peek(1) == '$' || peek(1) == '`')) {
      word.field.add(peek(1), line());
      at_ += 2;
    } else if (peek() == '`') {
      read_backticks(word.field);
    } else if (peek() == '$') {
      const ShellFields pieces = expand(0);
      for (std::size_t idx = 0; idx < pieces.size(); ++idx) {
        if (idx > 0) {
          word.fields.push_back(std::move(word.field));
          word.field = {};
        }
        word.field.add(pieces[idx]);
      }
    } else {
      word.field.add(peek(), line());
      ++at_;
    }
  }
  if (at_ >= size()) fail(begin_line, "a double quote that opens here is not closed");
  ++at_;
}

void ShellWords::read_backticks(LinedText& field) {
  const std::int32_t begin_line = line();
  const std::size_t begin = at_ + 1;
  for (++at_; at_ < size() && peek() != '`'; ++at_) {
  }
  if (at_ >= size()) fail(begin_line, "a backtick that opens here is not closed");
  ++at_;
  // `# text` is how comments are put between continued lines: it leaves nothing.
  const std::string_view inside = std::string_view(text_.bytes).substr(begin, at_ - begin - 1);
  const std::size_t first = inside.find_first_not_of(" \t");
  if (first == std::string_view::npos || inside[first] == '#') return;
  field.add(unknown("$(...)", begin_line));
}

ShellFields ShellWords::expand(int depth) {
  const std::int32_t at_line = line();
  ++at_;
  if (rest().starts_with("((")) return expand_arithmetic(at_line);
  if (peek() == '(') {
    skip_parentheses();
    return {unknown("$(...)", at_line)};
  }
  if (peek() == '{') return expand_braces(at_line, depth);
  std::string name;
  if (is_name_start(peek())) {
    while (is_name_byte(peek())) name.push_back(text_.bytes[at_++]);
    return look_up(name, "", at_line, depth);
  }
  if (peek() == '\0' || is_shell_space(peek()) || peek() == '"') return {unknown("$", at_line)};
  name = text_.bytes[at_++];
  return {unknown("$" + name, at_line)};
}

ShellFields ShellWords::expand_arithmetic(std::int32_t at_line) {
  const std::size_t begin = at_ + 2;
  skip_parentheses();
  if (at_ < begin + 2) return {unknown("$((", at_line)};
  const std::string_view inside = std::string_view(text_.bytes).substr(begin, at_ - begin - 2);
  bool assumed = false;
  const auto value = evaluate_arithmetic(inside, [&](std::string_view name) -> std::optional<std::int64_t> {
    const auto found = variables_.find(std::string(name));
    if (found == variables_.end() || found->second.size() != 1 || !found->second[0].known) return std::nullopt;
    assumed = assumed || found->second[0].assumed;
    return parse_whole(found->second[0].bytes);
  });
  if (!value) return {unknown("$((...))", at_line)};
  LinedText text;
  text.assumed = assumed;
  for (const char byte : std::to_string(*value)) text.add(byte, at_line);
  return {text};
}

ShellFields ShellWords::expand_braces(std::int32_t at_line, int depth) {
  int open = 0;
  const std::size_t begin = at_ + 1;
  while (at_ < size()) {
    const char byte = text_.bytes[at_++];
    if (byte == '{') ++open;
    if (byte == '}' && --open == 0) break;
  }
  if (open != 0) fail(at_line, "a '${' that opens here is not closed");
  const std::string inside = text_.bytes.substr(begin, at_ - begin - 1);
  std::size_t end = 0;
  while (end < inside.size() && is_name_byte(inside[end])) ++end;
  return look_up(inside.substr(0, end), inside.substr(end), at_line, depth);
}

ShellFields ShellWords::look_up(const std::string& name, const std::string& behind, std::int32_t at_line, int depth) {
  const auto found = variables_.find(name);
  const bool is_list = behind == "[@]" || behind == "[*]";
  const bool has_default =
      behind.starts_with(":-") || behind.starts_with(":=") || behind.starts_with('-') || behind.starts_with('=');
  if (!behind.empty() && !is_list && !has_default) return {unknown("${" + name + behind + "}", at_line)};
  if (found != variables_.end()) {
    if (has_default && found->second.front().bytes.empty()) return default_value(behind, at_line, depth);
    return bounded(is_list ? found->second : ShellFields{found->second.front()}, at_line);
  }
  if (!has_default) return {unknown("${" + name + behind + "}", at_line)};
  ShellFields value = default_value(behind, at_line, depth);
  // ": ${NAME:=value}" is an assignment.
  const bool assigns = behind.starts_with(":=") || behind.starts_with('=');
  if (assigns && !name.empty() && !value.empty()) variables_[name] = value;
  return value;
}

ShellFields ShellWords::default_value(const std::string& behind, std::int32_t at_line, int depth) {
  const std::size_t skip = behind.starts_with(':') ? 2 : 1;
  LinedText source;
  source.assumed = true;
  for (const char byte : behind.substr(skip)) source.add(byte, at_line);
  if (source.bytes.find('$') == std::string::npos) {
    std::erase(source.bytes, '"');
    source.lines.resize(source.bytes.size());
    return {source};
  }
  if (depth >= kMaxNesting) return {unknown("${...}", at_line)};
  ShellWords inner(source, file_);
  inner.variables_ = variables_;
  LinedText joined;
  joined.assumed = true;
  while (inner.at_ < inner.size()) {
    if (inner.peek() == '$') {
      for (const LinedText& piece : inner.expand(depth + 1)) joined.add(piece);
    } else {
      joined.add(inner.peek(), at_line);
      ++inner.at_;
    }
  }
  return {joined};
}

ShellFields ShellWords::bounded(const ShellFields& fields, std::int32_t at_line) {
  for (const LinedText& field : fields) expanded_bytes_ += field.bytes.size();
  if (expanded_bytes_ > kMaxExpandedBytes) return {unknown("${...}", at_line)};
  return fields;
}

}  // namespace epistle::check
