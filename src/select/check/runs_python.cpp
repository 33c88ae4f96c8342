// Recipes and launchers in Python: assignments, keyword arguments and dictionaries of literals. Nothing is run; a value
// that is no literal is not known.
#include <algorithm>
#include <array>
#include <cctype>
#include <cstddef>
#include <map>
#include <utility>

#include "select/check/runs.hpp"

namespace epistle::check {
namespace {

enum class TokenKind : std::int32_t { kName, kString, kNumber, kMark };

struct Token {
  TokenKind kind = TokenKind::kMark;
  std::string text;
  std::int32_t line = 0;
  bool at_line_start = false;  ///< in the first column
};

bool is_python_name_byte(char byte) { return std::isalnum(static_cast<unsigned char>(byte)) != 0 || byte == '_'; }
bool is_python_digit(char byte) { return std::isdigit(static_cast<unsigned char>(byte)) != 0; }

class Lexer {
 public:
  explicit Lexer(std::string_view text) : text_(text) {}

  std::vector<Token> run() {
    while (at_ < text_.size()) read_one();
    return std::move(tokens_);
  }

 private:
  [[nodiscard]] char peek(std::size_t ahead = 0) const {
    return at_ + ahead < text_.size() ? text_[at_ + ahead] : '\0';
  }
  void advance() {
    if (text_[at_] == '\n') ++line_;
    ++at_;
  }
  void add(TokenKind kind, std::size_t begin, std::int32_t line, std::string text) {
    const bool first = begin == 0 || text_[begin - 1] == '\n';
    tokens_.push_back({.kind = kind, .text = std::move(text), .line = line, .at_line_start = first});
  }

  void read_one() {
    const char byte = peek();
    const std::size_t begin = at_;
    if (std::isspace(static_cast<unsigned char>(byte)) != 0) {
      advance();
    } else if (byte == '#') {
      while (at_ < text_.size() && peek() != '\n') advance();
    } else if (byte == '"' || byte == '\'') {
      read_string(begin);
    } else if (is_python_digit(byte) || (byte == '-' && is_python_digit(peek(1)))) {
      advance();
      while (is_python_name_byte(peek()) || peek() == '.') advance();
      std::string number(text_.substr(begin, at_ - begin));
      std::erase(number, '_');
      add(TokenKind::kNumber, begin, line_, std::move(number));
    } else if (is_python_name_byte(byte)) {
      while (is_python_name_byte(peek()) || (peek() == '.' && is_python_name_byte(peek(1)))) advance();
      std::string name(text_.substr(begin, at_ - begin));
      const bool prefix = name.size() <= 2 && (peek() == '"' || peek() == '\'');  // r"", f"", rb""
      if (!prefix) {
        add(TokenKind::kName, begin, line_, std::move(name));
      } else {
        const bool formatted = name.find_first_of("fF") != std::string::npos;
        read_string(begin);
        // What braces hold only a run knows.
        if (formatted && tokens_.back().text.find('{') != std::string::npos) tokens_.back().kind = TokenKind::kName;
      }
    } else {
      const bool twice = (byte == '=' || byte == '!' || byte == '<' || byte == '>') && peek(1) == '=';
      advance();
      if (twice) advance();
      add(TokenKind::kMark, begin, line_, std::string(text_.substr(begin, at_ - begin)));
    }
  }

  /// An end that does not come is that of the file, or of the line: broken Python is not ours to judge.
  void read_string(std::size_t begin) {
    const char quote = peek();
    const std::int32_t line = line_;
    const bool triple = peek(1) == quote && peek(2) == quote;
    for (int step = 0; step < (triple ? 3 : 1); ++step) advance();
    std::string text;
    while (at_ < text_.size()) {
      const bool ends = triple ? peek() == quote && peek(1) == quote && peek(2) == quote : peek() == quote;
      if (ends || (!triple && peek() == '\n')) break;
      if (peek() == '\\' && at_ + 1 < text_.size()) {
        if (peek(1) != '\n') text.push_back(peek(1));
        advance();
      } else {
        text.push_back(peek());
      }
      advance();
    }
    for (int step = 0; step < (triple ? 3 : 1) && peek() == quote; ++step) advance();
    add(TokenKind::kString, begin, line, std::move(text));
  }

  std::string_view text_;
  std::size_t at_ = 0;
  std::int32_t line_ = 1;
  std::vector<Token> tokens_;
};

/// What one function, or the code outside of functions, sets.
struct Section {
  std::vector<Setting> options;
  std::vector<Setting> environment;
};

struct Value {
  std::vector<std::string> values;
  bool known = true;
};

class PythonReader {
 public:
  PythonReader(ConfigFile& file, std::vector<Token> tokens) : file_(file), tokens_(std::move(tokens)) {}

  void run() {
    for (at_ = 0; at_ < tokens_.size(); ++at_) read_token();
    for (auto& [number, section] : sections_) add_run(section);
  }

 private:
  [[nodiscard]] const Token& token(std::size_t ahead = 0) const {
    static const Token kNone;
    return at_ + ahead < tokens_.size() ? tokens_[at_ + ahead] : kNone;
  }
  [[nodiscard]] bool is_mark(std::size_t ahead, std::string_view text) const {
    return token(ahead).kind == TokenKind::kMark && token(ahead).text == text;
  }
  /// A literal is the whole value where one of these stands behind it, or a new line begins.
  [[nodiscard]] bool ends_value(std::size_t ahead, std::int32_t line) const {
    if (at_ + ahead >= tokens_.size()) return true;
    for (const std::string_view mark : {",", ")", "]", "}", ";"}) {
      if (is_mark(ahead, mark)) return true;
    }
    return token(ahead).line != line;
  }

  void read_token() {
    const Token& here = token();
    if (here.at_line_start && here.kind == TokenKind::kName) {
      const bool opens = here.text == "def" || here.text == "class" || here.text == "async";
      if (opens) ++num_sections_;
      section_ = opens ? num_sections_ : 0;
    }
    if (here.kind == TokenKind::kName && here.text.ends_with("apply_flex_dispatcher_backend") && is_mark(1, "(")) {
      read_apply();
    } else if (here.kind == TokenKind::kName && here.text.ends_with("environ.setdefault") && is_mark(1, "(") &&
               is_mark(3, ",")) {
      add_variable(token(2), read_value(4));
    } else if ((here.kind == TokenKind::kName && is_mark(1, "=")) ||
               (here.kind == TokenKind::kString && is_mark(1, ":"))) {
      add_setting(here, here.text, read_value(2));
    } else if (here.kind == TokenKind::kString && is_mark(1, "]") && is_mark(2, "=")) {
      add_setting(here, here.text, read_value(3));
    } else if (is_mark(0, "[")) {
      read_command_list();
    } else if (here.kind == TokenKind::kString && here.text.find(" --") != std::string::npos && is_handed_on()) {
      read_command_text(here);
    }
  }

  /// Assigned or an argument: what stands by itself describes a function.
  [[nodiscard]] bool is_handed_on() const {
    if (at_ == 0 || tokens_[at_ - 1].kind != TokenKind::kMark) return false;
    const std::string& before = tokens_[at_ - 1].text;
    return before == "=" || before == "(" || before == "," || before == "+";
  }

  Value read_value(std::size_t ahead) {
    const Token& first = token(ahead);
    if (is_mark(ahead, "[") || is_mark(ahead, "(")) return read_list(ahead + 1);
    const bool literal =
        first.kind == TokenKind::kString || first.kind == TokenKind::kNumber ||
        (first.kind == TokenKind::kName && (first.text == "True" || first.text == "False" || first.text == "None"));
    if (!literal || !ends_value(ahead + 1, first.line)) return {.values = {first.text}, .known = false};
    return {.values = {first.text}, .known = true};
  }

  Value read_list(std::size_t ahead) {
    Value value;
    constexpr std::size_t kLongest = 4096;
    for (const std::size_t begin = ahead; ahead < begin + kLongest && at_ + ahead < tokens_.size(); ++ahead) {
      const Token& item = token(ahead);
      if (is_mark(ahead, "]") || is_mark(ahead, ")")) return value;
      if (item.kind == TokenKind::kString || item.kind == TokenKind::kNumber) {
        value.values.push_back(item.text);
      } else if (!is_mark(ahead, ",")) {
        value.known = false;
      }
    }
    value.known = false;
    return value;
  }

  Setting make_setting(const Token& at, const std::string& name, Value value) {
    Setting setting;
    setting.name = name;
    setting.flag = at.text.substr(at.text.rfind('.') + 1);
    setting.values = std::move(value.values);
    setting.known_value = value.known;
    setting.line = at.line;
    // A name that is assigned again is Python, and no slip.
    setting.scope = ++num_scopes_;
    return setting;
  }

  void add_variable(const Token& at, Value value) {
    sections_[section_].environment.push_back(make_setting(at, at.text, std::move(value)));
  }

  void add_setting(const Token& at, std::string_view dotted, Value value) {
    const std::string_view last = dotted.substr(dotted.rfind('.') + 1);
    if (is_variable_name(last) && at.kind == TokenKind::kString) {
      add_variable(at, std::move(value));
      return;
    }
    const std::string name = plain_key(last);
    // A number may stand for the whole of a recipe: "ep = 8" is somebody's variable.
    if (name.size() <= 3 || !is_option_key(name)) return;
    sections_[section_].options.push_back(make_setting(at, name, std::move(value)));
  }

  /// apply_flex_dispatcher_backend(model, "deepep") of Megatron-Bridge sets the type as well.
  void read_apply() {
    int depth = 0;
    for (std::size_t ahead = 1; at_ + ahead < tokens_.size(); ++ahead) {
      if (is_mark(ahead, "(")) ++depth;
      if (is_mark(ahead, ")") && --depth == 0) return;
      if (token(ahead).kind != TokenKind::kString) continue;
      auto& options = sections_[section_].options;
      options.push_back(make_setting(token(), "moe-token-dispatcher-type", {.values = {"flex"}}));
      options.push_back(make_setting(token(), "moe-flex-dispatcher-backend", {.values = {token(ahead).text}}));
      at_ += ahead;
      return;
    }
  }

  /// ["vllm", "serve", ..., "--flag", "value"], as subprocesses are started.
  void read_command_list() {
    std::vector<LinedText> words;
    std::size_t ahead = 1;
    constexpr std::size_t kLongestCommand = 2048;  // brackets in brackets must not cost their square
    for (; ahead < kLongestCommand && at_ + ahead < tokens_.size() && !is_mark(ahead, "]"); ++ahead) {
      if (token(ahead).kind == TokenKind::kMark) continue;
      LinedText word;
      for (const char byte : token(ahead).text) word.add(byte, token(ahead).line);
      word.known = token(ahead).kind == TokenKind::kString || token(ahead).kind == TokenKind::kNumber;
      words.push_back(std::move(word));
    }
    const bool flags =
        std::any_of(words.begin(), words.end(), [](const LinedText& word) { return word.bytes.starts_with("--"); });
    if (!flags) return;
    RunConfig run = read_words(words);
    if (run.engine != Engine::kUnknown) file_.runs.push_back(std::move(run));
    at_ += ahead;
  }

  void read_command_text(const Token& text) {
    LinedText script;
    std::int32_t line = text.line;
    for (const char byte : text.text) {
      script.add(byte, line);
      if (byte == '\n') ++line;
    }
    // Prose has apostrophes: what is no script is no command.
    if (text.text.find('\'') == std::string::npos && text.text.find('`') == std::string::npos &&
        text.text.find('"') == std::string::npos)
      read_script_runs(file_, script, {});
  }

  void add_run(Section& section) {
    RunConfig run;
    run.dialect = Dialect::kPython;
    run.engine = guess_engine(section.options);
    if (run.engine == Engine::kUnknown) return;
    // A recipe starts from another one.
    run.complete = run.engine != Engine::kMegatron;
    run.options = std::move(section.options);
    for (Setting& setting : run.options) setting.name = canonical_name(run.engine, setting.name);
    run.environment = std::move(section.environment);
    run.line = run.options.front().line;
    file_.runs.push_back(std::move(run));
  }

  ConfigFile& file_;
  std::vector<Token> tokens_;
  std::size_t at_ = 0;
  std::int32_t section_ = 0;
  std::int32_t num_sections_ = 0;
  std::int32_t num_scopes_ = 0;
  std::map<std::int32_t, Section> sections_;
};

}  // namespace

void read_python_runs(ConfigFile& file, std::string_view text) { PythonReader(file, Lexer(text).run()).run(); }

}  // namespace epistle::check
