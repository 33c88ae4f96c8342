// The words of a shell script: quotes, escapes, and what variables expand to as far as that is known.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "select/check/shell.hpp"

namespace epistle::check {

using ShellFields = std::vector<LinedText>;

[[nodiscard]] bool is_name_start(char byte) noexcept;
[[nodiscard]] bool is_name_byte(char byte) noexcept;
[[nodiscard]] bool is_shell_space(char byte) noexcept;

/// A place in a script, the variables as they are there, and what can be read at the place.
class ShellWords {
 public:
  /// `text` and `file` must live as long.
  ShellWords(const LinedText& text, const std::string& file) : text_(text), file_(file) {}

 protected:
  [[nodiscard]] std::size_t size() const noexcept { return text_.bytes.size(); }
  [[nodiscard]] char peek(std::size_t ahead = 0) const noexcept {
    return at_ + ahead < size() ? text_.bytes[at_ + ahead] : '\0';
  }
  [[nodiscard]] std::int32_t line() const noexcept;
  [[nodiscard]] std::string_view rest() const noexcept { return std::string_view(text_.bytes).substr(at_); }
  [[noreturn]] void fail(std::int32_t at_line, const std::string& what) const;

  /// One word of the text, which is several where an expansion holds spaces and `split` says so.
  ShellFields read_word(bool split = true);
  void skip_parentheses();

  const LinedText& text_;
  const std::string& file_;
  std::size_t at_ = 0;
  std::map<std::string, ShellFields> variables_;

 private:
  struct Word;

  void read_single_quotes(LinedText& field);
  void read_double_quotes(Word& word);
  void read_backticks(LinedText& field);
  static void add_expansion(const ShellFields& pieces, bool split, Word& word);

  /// At a '$'. No piece where the variable is known and empty, several for an array.
  ShellFields expand(int depth);
  ShellFields expand_arithmetic(std::int32_t at_line);
  ShellFields expand_braces(std::int32_t at_line, int depth);
  /// `behind` is what stands behind the name in braces: "[@]", ":-8", ...
  ShellFields look_up(const std::string& name, const std::string& behind, std::int32_t at_line, int depth);
  ShellFields default_value(const std::string& behind, std::int32_t at_line, int depth);
  ShellFields bounded(const ShellFields& fields, std::int32_t at_line);

  std::size_t expanded_bytes_ = 0;
};

}  // namespace epistle::check
