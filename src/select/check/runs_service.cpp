// Files that hold commands behind keywords: unit files of systemd, recipes of containers.
#include <algorithm>
#include <cstddef>

#include <nlohmann/json.hpp>

#include "core/ascii.hpp"
#include "select/check/runs.hpp"

namespace epistle::check {
namespace {

struct Line {
  std::string_view text;
  std::int32_t number = 0;
  bool goes_on = false;  ///< the line before it ended in a backslash
};

std::vector<Line> split_lines(std::string_view text) {
  std::vector<Line> lines;
  bool goes_on = false;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    if (line.ends_with('\r')) line.remove_suffix(1);
    lines.push_back({line, static_cast<std::int32_t>(lines.size() + 1), goes_on});
    goes_on = line.ends_with('\\');
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return lines;
}

/// "ExecStart=-/usr/bin/vllm serve ..." and "Environment=A=1 B=2"; other keys say nothing of the command.
std::string unit_line(std::string_view line) {
  for (const std::string_view key : {"ExecStart=", "ExecStartPre=", "Environment="}) {
    if (!line.starts_with(key)) continue;
    line.remove_prefix(key.size());
    if (key == "Environment=") {
      // "A=1" in quotes is the same as without.
      std::string text = "export " + std::string(line);
      std::erase(text, '"');
      return text;
    }
    while (!line.empty() && std::string_view("-@+!:").find(line.front()) != std::string_view::npos)
      line.remove_prefix(1);
    return std::string(line);
  }
  return {};
}

void add_text(LinedText& text, std::string_view bytes, std::int32_t line) {
  for (const char byte : bytes) text.add(byte, line);
}

/// The value of an instruction over all its lines, without the backslashes between them.
LinedText instruction_value(const std::vector<Line>& lines, std::size_t first, std::size_t skip,
                            std::size_t& num_lines) {
  LinedText value;
  num_lines = 0;
  for (std::size_t idx = first; idx < lines.size() && (idx == first || lines[idx].goes_on); ++idx, ++num_lines) {
    std::string_view text = lines[idx].text;
    if (idx == first) text.remove_prefix(skip);
    if (text.ends_with('\\')) text.remove_suffix(1);
    add_text(value, text, lines[idx].number);
    value.add(' ', lines[idx].number);
  }
  return value;
}

/// `["vllm", "serve"]` as words of a shell, each where it was written; what is no such list stays as it is.
LinedText list_words(const LinedText& list) {
  if (!nlohmann::json::parse(list.bytes, nullptr, false).is_array()) return list;
  LinedText words;
  bool inside = false;
  for (std::size_t idx = 0; idx < list.bytes.size(); ++idx) {
    const char byte = list.bytes[idx];
    const std::int32_t line = list.lines[idx];
    if (byte == '"') {
      inside = !inside;
      words.add('\'', line);
    } else if (!inside) {
      words.add(' ', line);
    } else if (byte == '\'') {
      add_text(words, R"('\'')", line);
    } else {
      const bool escape = byte == '\\' && idx + 1 < list.bytes.size();
      words.add(escape ? list.bytes[++idx] : byte, line);
    }
  }
  return words;
}

LinedText trimmed(const LinedText& text) {
  const std::size_t begin = std::min(text.bytes.find_first_not_of(' '), text.bytes.size());
  LinedText rest;
  for (std::size_t idx = begin; idx < text.bytes.size(); ++idx) rest.add(text.bytes[idx], text.lines[idx]);
  return rest;
}

/// "ENV A=1" and "ENV A 1".
LinedText exported(LinedText value, std::int32_t line) {
  const std::size_t word_end = value.bytes.find_first_of(" =");
  if (word_end != std::string::npos) value.bytes[word_end] = '=';
  LinedText text;
  add_text(text, "export ", line);
  text.add(value);
  return text;
}

/// An entry point and the arguments of CMD are one command.
LinedText container_script(const std::vector<Line>& lines) {
  LinedText script;
  LinedText entry;
  const auto add_command = [&](const LinedText& command, std::int32_t line) {
    script.add(command);
    script.add('\n', line);
  };
  for (std::size_t idx = 0; idx < lines.size();) {
    const std::string_view text = lines[idx].text;
    const std::int32_t number = lines[idx].number;
    const std::string instruction = to_lower(text.substr(0, text.find(' ')));
    std::size_t num_lines = 1;
    const LinedText value = instruction_value(lines, idx, std::min(instruction.size(), text.size()), num_lines);
    idx += num_lines;
    if (instruction == "run") add_command(value, number);
    if (instruction == "env") add_command(exported(trimmed(value), number), number);
    if (instruction == "entrypoint") entry = list_words(value);
    if (instruction != "cmd") continue;
    entry.add(list_words(value));
    add_command(entry, number);
    entry = {};
  }
  if (!entry.bytes.empty()) add_command(entry, entry.line());
  return script;
}

bool is_unit_file(const std::vector<Line>& lines) {
  return std::any_of(lines.begin(), lines.end(), [](const Line& line) { return line.text.starts_with("ExecStart="); });
}

bool is_container_recipe(const std::vector<Line>& lines, std::string_view name) {
  const std::string lower = to_lower(name.substr(name.rfind('/') + 1));
  if (lower.starts_with("dockerfile") || lower.ends_with(".dockerfile") || lower.starts_with("containerfile"))
    return true;
  const auto first = std::find_if(lines.begin(), lines.end(),
                                  [](const Line& line) { return !line.text.empty() && !line.text.starts_with('#'); });
  return first != lines.end() && first->text.starts_with("FROM ");
}

}  // namespace

LinedText script_of_service(std::string_view text, std::string_view name) {
  const std::vector<Line> lines = split_lines(text);
  if (is_container_recipe(lines, name)) return container_script(lines);
  LinedText script;
  if (!is_unit_file(lines)) return script;
  bool kept = false;
  for (const Line& line : lines) {
    const std::string read = line.goes_on ? (kept ? std::string(line.text) : std::string()) : unit_line(line.text);
    if (!line.goes_on) kept = !read.empty();
    add_text(script, read + "\n", line.number);
  }
  return script;
}

}  // namespace epistle::check
