#include "output.hpp"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <fstream>

#include <unistd.h>

#include <fmt/format.h>

#include "output_file.hpp"

namespace epistle::cli {

void print(std::string_view text) { write_all(STDOUT_FILENO, text, "standard output"); }

void print_error(std::string_view message) noexcept {
  constexpr unsigned char kFirstPrintable = 0x20;
  constexpr unsigned char kDelete = 0x7f;
  try {
    std::string line = fmt::format("epistle: error: {}", message);
    // Names may hold line ends and what moves a terminal's cursor.
    std::replace_if(
        line.begin(), line.end(),
        [](char c) {
          return static_cast<unsigned char>(c) < kFirstPrintable || static_cast<unsigned char>(c) == kDelete;
        },
        ' ');
    write_all(STDERR_FILENO, line + '\n', "standard error");
  } catch (const std::exception&) {
    // There is nowhere left to tell it; the exit code remains.
  }
}

std::string shortened(std::string_view text) {
  constexpr std::size_t kMaxChars = 60;
  return text.size() <= kMaxChars ? std::string(text) : fmt::format("{}...", text.substr(0, kMaxChars));
}

std::string reason_of(const Error& error) {
  std::string text = error.what();
  const std::string prefix = fmt::format("{}: ", to_string(error.code()));
  if (text.starts_with(prefix)) text.erase(0, prefix.size());
  return text;
}

std::string command_line() {
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  std::string text;
  for (std::string word; std::getline(file, word, '\0');) {
    if (text.empty()) word = std::filesystem::path(word).filename().string();
    const bool is_plain = !word.empty() && word.find_first_of(" \t\n'\"\\$&|;<>()*?[]#~`") == std::string::npos;
    if (!text.empty()) text += ' ';
    text += is_plain ? word : fmt::format("'{}'", word);
  }
  return text;
}

void check_output(const std::string& target) { OutputFile(target).check(); }

void write_output(const std::string& target, std::string_view text) {
  OutputFile(target).write(fmt::format("{}\n", text));
}

}  // namespace epistle::cli
