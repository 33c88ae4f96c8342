#include "select/check/shell.hpp"

#include <algorithm>
#include <array>
#include <cctype>
#include <cstddef>
#include <map>
#include <utility>

#include "select/check/config.hpp"
#include "select/check/shell_condition.hpp"
#include "select/check/shell_words.hpp"

namespace epistle::check {
namespace {

/// What stands in front of a command and is none of its words.
bool is_prefix(std::string_view word) {
  constexpr std::array<std::string_view, 14> kPrefixes = {"then", "do",   "{",     "if",   "while", "until", "!",
                                                          "time", "exec", "nohup", "eval", "elif",  "else",  "env"};
  return std::find(kPrefixes.begin(), kPrefixes.end(), word) != kPrefixes.end();
}

bool is_declaration(std::string_view word) {
  constexpr std::array<std::string_view, 5> kWords = {"export", "declare", "local", "readonly", "typeset"};
  return std::find(kWords.begin(), kWords.end(), word) != kWords.end();
}

class Reader : private ShellWords {
 public:
  Reader(const LinedText& text, const std::string& file, const ShellVariables& inherited) : ShellWords(text, file) {
    for (const auto& [name, value] : inherited) variables_[name] = {value};
  }

  ShellScript run() {
    while (at_ < size()) read_command();
    script_.exports = exports_;
    return std::move(script_);
  }

 private:
  // ---- Commands
  // ------------------------------------------------------------------------------------------------------

  void read_command() {
    ShellCommand command;
    bool exporting = false;
    while (at_ < size()) {
      skip_blanks();
      if (at_ >= size()) break;
      if (peek() == '#') {
        read_comment();
        continue;
      }
      if (end_of_command()) break;
      if (skip_redirection()) continue;
      if (command.words.empty() && read_assignment(command, exporting)) continue;
      read_words_of(command, exporting);
    }
    if (command.words.empty()) {
      auto& target = export_all_ ? exports_ : script_.plain;
      target.insert(target.end(), command.environment.begin(), command.environment.end());
      return;
    }
    if (command.words.size() == 2 && command.words[0].bytes == "set")
      export_all_ = export_all_ || command.words[1].bytes == "-a";
    const char end = at_ > 0 ? text_.bytes[at_ - 1] : '\n';
    note_condition(command.words, end != '&' && end != '|');
    // What is exported counts for this command; what stands in front of it, last.
    auto environment = exports_;
    environment.insert(environment.end(), command.environment.begin(), command.environment.end());
    command.environment = std::move(environment);
    script_.commands.push_back(std::move(command));
  }

  void read_words_of(ShellCommand& command, bool& exporting) {
    ShellFields fields = read_word();
    if (fields.size() == 1 && fields[0].known && command.words.empty()) {
      const std::string& word = fields[0].bytes;
      note_branch(word);
      if (is_prefix(word)) return;
      if (is_declaration(word)) {
        exporting = true;
        hidden_ = word != "export";
        return;
      }
      if (word == "for") {
        forget_loop_variable();
        return;
      }
    }
    for (LinedText& field : fields) {
      // A word that is nothing but an unknown expansion may stand for any options.
      if (!field.known && field.bytes.starts_with('$') && field.bytes.find('=') == std::string::npos) {
        const bool whole = field.bytes.find_first_of(" /.:") == std::string::npos;
        const bool value = !command.words.empty() && command.words.back().bytes.starts_with('-');
        if (whole && !value) command.complete = false;
      }
      if (exporting && field.bytes.starts_with('-')) {
        // "declare -x" exports, "export -n" takes back.
        hidden_ = field.bytes.find('n') != std::string::npos || (hidden_ && field.bytes.find('x') == std::string::npos);
      } else if (exporting) {
        if (!hidden_) export_variable(field.bytes);
      } else {
        command.words.push_back(std::move(field));
      }
    }
  }

  /// "export NAME" of a variable that has its value already.
  void export_variable(const std::string& name) {
    const auto found = variables_.find(name);
    if (found == variables_.end()) return;
    const auto line = assigned_at_.find(name);
    exports_.emplace_back(
        name, line == assigned_at_.end() ? found->second.front() : at_line(found->second.front(), line->second));
  }

  /// A variable of the environment stands where it is assigned, wherever the text of its value comes from.
  static LinedText at_line(LinedText value, std::int32_t line) {
    std::fill(value.lines.begin(), value.lines.end(), line);
    return value;
  }

  void note_branch(std::string_view word) {
    if (word == "if" || word == "case") branches_.push_back({});
    if (branches_.empty()) return;
    Branch& branch = branches_.back();
    if (word == "if" || word == "elif") condition_begins_ = true;
    if (word == "else" || word == "elif") branch.happens = !branch.decided;
    if (word == "case") branch.decided = true;
    if (word == "fi" || word == "esac") branches_.pop_back();
  }

  /// Of alternatives that is taken to happen whose condition holds; where it is not known, the first.
  void note_condition(const std::vector<LinedText>& words, bool alone) {
    if (!condition_begins_ || branches_.empty()) return;
    condition_begins_ = false;
    Branch& branch = branches_.back();
    if (!branch.happens) return;
    branch.happens = (alone ? evaluate_condition(words) : std::nullopt).value_or(true);
    branch.decided = branch.happens;
  }

  [[nodiscard]] bool in_other_branch() const {
    return std::any_of(branches_.begin(), branches_.end(), [](const Branch& branch) { return !branch.happens; });
  }

  void forget_loop_variable() {
    skip_blanks();
    std::string name;
    while (is_name_byte(peek())) name.push_back(text_.bytes[at_++]);
    variables_.erase(name);
  }

  void read_comment() {
    const std::size_t end = std::min(text_.bytes.find('\n', at_), size());
    const bool at_line_start = at_ == 0 || text_.bytes[at_ - 1] == '\n';
    if (at_line_start && rest().starts_with("#SBATCH")) {
      LinedText directive;
      for (std::size_t idx = at_; idx < end; ++idx) directive.add(text_.bytes[idx], text_.lines[idx]);
      script_.directives.push_back(std::move(directive));
    }
    at_ = end;
  }

  void skip_blanks() {
    while (at_ < size()) {
      if (peek() == '\\' && (peek(1) == '\n' || (peek(1) == '\r' && peek(2) == '\n'))) {
        at_ += peek(1) == '\n' ? 2 : 3;
      } else if (peek() == ' ' || peek() == '\t' || peek() == '\r') {
        ++at_;
      } else {
        return;
      }
    }
  }

  bool end_of_command() {
    const char byte = peek();
    if (byte == '&' && peek(1) == '>') return false;
    if (byte != '\n' && byte != ';' && byte != '&' && byte != '|' && byte != '(' && byte != ')') return false;
    if (byte == ';' && peek(1) == ';' && !branches_.empty()) branches_.back().happens = false;
    ++at_;
    if (byte == '\n') read_here_documents();
    return true;
  }

  bool skip_redirection() {
    std::size_t ahead = 0;
    while (std::isdigit(static_cast<unsigned char>(peek(ahead))) != 0) ++ahead;
    if (ahead == 0 && peek() == '&') ahead = 1;
    if (peek(ahead) != '>' && peek(ahead) != '<') return false;
    at_ += ahead;
    const bool here = rest().starts_with("<<") && !rest().starts_with("<<<");
    while (peek() == '>' || peek() == '<' || peek() == '&' || peek() == '-') ++at_;
    skip_blanks();
    if (peek() == '(') {
      skip_parentheses();
      return true;
    }
    if (at_ >= size() || peek() == '\n') return true;
    const bool quoted = peek() == '\'' || peek() == '"' || peek() == '\\';
    const ShellFields target = read_word();
    if (here && !target.empty()) here_ends_.push_back({target.front().bytes, script_.commands.size(), quoted});
    return true;
  }

  void read_here_documents() {
    for (const HereEnd& here : here_ends_) {
      const std::size_t begin = at_;
      std::size_t body_end = at_;
      while (at_ < size()) {
        const std::size_t end = std::min(text_.bytes.find('\n', at_), size());
        std::string_view one = std::string_view(text_.bytes).substr(at_, end - at_);
        at_ = std::min(end + 1, size());
        while (one.starts_with('\t')) one.remove_prefix(1);
        if (one.ends_with('\r')) one.remove_suffix(1);
        if (one == here.mark) break;
        body_end = at_;
      }
      script_.here_documents.push_back({here.command, here_text(begin, body_end, here.quoted)});
    }
    here_ends_.clear();
  }

  [[nodiscard]] LinedText here_text(std::size_t begin, std::size_t end, bool quoted) const {
    LinedText text;
    for (std::size_t idx = begin; idx < end; ++idx) {
      const char byte = text_.bytes[idx];
      if (!quoted && byte == '\\' && idx + 1 < end && text_.bytes[idx + 1] == '$') continue;
      const bool escaped = idx > begin && text_.bytes[idx - 1] == '\\';
      std::size_t last = idx;
      const LinedText* const value = quoted || escaped || byte != '$' ? nullptr : named_value(idx, end, last);
      if (value == nullptr || text.bytes.size() + value->bytes.size() > kMaxConfigBytes) {
        text.add(byte, text_.lines[idx]);
        continue;
      }
      for (const char put : value->bytes) text.add(put, text_.lines[idx]);
      idx = last;
    }
    return text;
  }

  /// Of "$NAME" or "${NAME}" at `at`, which ends at `last`; null where its value is not known here.
  [[nodiscard]] const LinedText* named_value(std::size_t at, std::size_t end, std::size_t& last) const {
    const bool braces = at + 1 < end && text_.bytes[at + 1] == '{';
    std::size_t name_end = at + (braces ? 2 : 1);
    const std::size_t name_begin = name_end;
    while (name_end < end && is_name_byte(text_.bytes[name_end])) ++name_end;
    if (braces && (name_end >= end || text_.bytes[name_end] != '}')) return nullptr;
    const auto found = variables_.find(text_.bytes.substr(name_begin, name_end - name_begin));
    if (found == variables_.end() || !found->second.front().known) return nullptr;
    last = braces ? name_end : name_end - 1;
    return &found->second.front();
  }

  // ---- Assignments
  // ---------------------------------------------------------------------------------------------------

  bool read_assignment(ShellCommand& command, bool exporting) {
    if (!is_name_start(peek())) return false;
    std::size_t ahead = 0;
    while (is_name_byte(peek(ahead))) ++ahead;
    const bool append = peek(ahead) == '+' && peek(ahead + 1) == '=';
    if (peek(ahead) != '=' && !append) return false;
    const std::string name(rest().substr(0, ahead));
    const std::int32_t begin_line = line();
    at_ += ahead + (append ? 2 : 1);
    const bool array = peek() == '(';
    ShellFields values = array ? read_array() : ShellFields{};
    if (!array) {
      LinedText joined;
      if (!value_is_empty()) {
        const ShellFields fields = read_word(false);
        for (std::size_t idx = 0; idx < fields.size(); ++idx) {
          // An array in a value is its items with spaces between them.
          if (idx > 0) joined.add(' ', fields[idx].line());
          joined.add(fields[idx]);
        }
      }
      values.push_back(std::move(joined));
    }
    for (const LinedText& value : values) script_.values.push_back(value);
    if (in_other_branch()) return true;
    assign(name, values, append, array);
    assigned_at_[name] = begin_line;
    if (array) return true;
    auto& target = exporting && !hidden_ ? exports_ : command.environment;
    target.emplace_back(name, at_line(variables_[name].front(), begin_line));
    return true;
  }

  /// Nothing behind the '='.
  [[nodiscard]] bool value_is_empty() const {
    return at_ >= size() || is_shell_space(peek()) || peek() == ';' || peek() == '&' || peek() == '|' || peek() == ')';
  }

  void assign(const std::string& name, const ShellFields& values, bool append, bool array) {
    ShellFields& variable = variables_[name];
    if (!append) {
      variable = values;
    } else if (array) {
      variable.insert(variable.end(), values.begin(), values.end());
    } else {
      if (variable.empty()) variable.emplace_back();
      variable.front().add(values.front());
    }
    if (variable.empty()) variable.emplace_back();
  }

  ShellFields read_array() {
    const std::int32_t begin_line = line();
    ++at_;
    ShellFields values;
    while (true) {
      while (at_ < size() && (is_shell_space(peek()) || (peek() == '\\' && is_shell_space(peek(1))))) ++at_;
      if (at_ >= size()) fail(begin_line, "an array that begins here has no closing parenthesis");
      if (peek() == ')') break;
      if (peek() == '#') {
        at_ = std::min(text_.bytes.find('\n', at_), size());
        continue;
      }
      const std::size_t before = at_;
      for (LinedText& field : read_word()) values.push_back(std::move(field));
      if (at_ == before) ++at_;  // an operator that means nothing here
    }
    ++at_;
    return values;
  }

  ShellVariables exports_;
  std::map<std::string, std::int32_t> assigned_at_;
  bool hidden_ = false;      ///< the declaration at hand exports nothing
  bool export_all_ = false;  ///< set -a
  struct Branch {
    bool happens = true;
    bool decided = false;  ///< one of the alternatives has happened
  };

  std::vector<Branch> branches_;  ///< open if and case
  bool condition_begins_ = false;
  struct HereEnd {
    std::string mark;
    std::size_t command = 0;
    bool quoted = false;  ///< nothing in it is put in
  };
  std::vector<HereEnd> here_ends_;
  ShellScript script_;
};

}  // namespace

void LinedText::add(const LinedText& text) {
  bytes += text.bytes;
  lines.insert(lines.end(), text.lines.begin(), text.lines.end());
  known = known && text.known;
  assumed = assumed || text.assumed;
}

ShellScript parse_shell(const LinedText& text, const std::string& file, const ShellVariables& inherited) {
  return Reader(text, file, inherited).run();
}

LinedText number_lines(std::string_view text) {
  LinedText numbered;
  numbered.bytes = text;
  numbered.lines.reserve(text.size());
  std::int32_t line = 1;
  for (const char byte : text) {
    numbered.lines.push_back(line);
    if (byte == '\n') ++line;
  }
  return numbered;
}

}  // namespace epistle::check
