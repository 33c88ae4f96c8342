#include "output.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>

#include <unistd.h>

#include <fmt/format.h>

namespace epistle::cli {
namespace {

[[noreturn]] void throw_cannot_write(std::string_view target) {
  const int error = errno;
  throw Error(ErrorCode::kSystem,
              fmt::format("cannot write to {}: {}; check the path, its permissions and the free space", target,
                          std::strerror(error)));
}

void write_all(std::FILE* file, std::string_view text, std::string_view target) {
  // Flushed at once: a full disk must be an error of this command, not a silent loss at its exit.
  if (std::fwrite(text.data(), 1, text.size(), file) != text.size() || std::fflush(file) != 0) {
    throw_cannot_write(target);
  }
}

}  // namespace

void print(std::string_view text) { write_all(stdout, text, "standard output"); }

void print_error(std::string_view message) {
  std::string line(message);
  std::replace(line.begin(), line.end(), '\n', ' ');
  fmt::print(stderr, "epistle: error: {}\n", line);
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

void check_output(const std::string& target) {
  if (target == kStdout) return;
  const std::filesystem::path path(target);
  std::error_code no_status;  // what does not exist has no status, and is no folder
  if (std::filesystem::is_directory(path, no_status)) {
    errno = EISDIR;
    throw_cannot_write(target);
  }
  const bool exists = ::access(path.c_str(), F_OK) == 0;
  const std::filesystem::path folder = path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
  if (::access(exists ? path.c_str() : folder.c_str(), W_OK) != 0) throw_cannot_write(target);
}

void write_output(const std::string& target, std::string_view text) {
  const std::string content = fmt::format("{}\n", text);
  if (target == kStdout) {
    print(content);
    return;
  }
  const auto close = [](std::FILE* file) { std::fclose(file); };
  const std::unique_ptr<std::FILE, decltype(close)> file(std::fopen(target.c_str(), "w"), close);
  if (!file) throw_cannot_write(target);
  write_all(file.get(), content, target);
}

}  // namespace epistle::cli
