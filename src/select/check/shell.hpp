// A shell script as a list of commands. Not a shell: nothing is run, and what only a run would know stays unknown.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace epistle::check {

/// Text of which every byte knows its line, so that flags in a variable keep the line on which they were written.
struct LinedText {
  std::string bytes;
  std::vector<std::int32_t> lines;  ///< one for every byte
  bool known = true;                ///< false where a part depends on a run
  bool assumed = false;             ///< a default that a run may replace: "${NNODES:-1}"

  void add(char byte, std::int32_t line) {
    bytes.push_back(byte);
    lines.push_back(line);
  }
  void add(const LinedText& text);
  [[nodiscard]] std::int32_t line() const noexcept { return lines.empty() ? 0 : lines.front(); }
};

using ShellVariables = std::vector<std::pair<std::string, LinedText>>;

struct ShellCommand {
  std::vector<LinedText> words;
  ShellVariables environment;  ///< exported before it, and in front of it
  bool complete = true;        ///< false where words come from what is not known
};

/// What stands below "COMMAND <<MARK".
struct HereDocument {
  std::size_t command = 0;  ///< its position among the commands
  LinedText text;           ///< with variables put in, unless the mark was quoted
};

struct ShellScript {
  std::vector<ShellCommand> commands;
  std::vector<HereDocument> here_documents;
  std::vector<LinedText> values;      ///< of variables and arrays, in the order of assignment
  ShellVariables exports;             ///< at the end
  ShellVariables plain;               ///< assigned and not exported
  std::vector<LinedText> directives;  ///< "#SBATCH ..." lines
};

/// `lines` of the text are those of the file; `inherited` is what whoever starts it has exported. Throws kCorruptInput
/// ("FILE:LINE: ...") for a quote that does not end.
[[nodiscard]] ShellScript parse_shell(const LinedText& text, const std::string& file,
                                      const ShellVariables& inherited = {});

[[nodiscard]] LinedText number_lines(std::string_view text);

}  // namespace epistle::check
