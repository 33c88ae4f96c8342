#include "measure/gpu_driver.hpp"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <sstream>

namespace epistle {
namespace {

constexpr const char* kVersionFile = "/proc/driver/nvidia/version";

bool is_digit(char c) { return c >= '0' && c <= '9'; }

/// Numbers with dots in between, at least two.
bool is_version(std::string_view word) {
  const bool only_digits_and_dots =
      std::all_of(word.begin(), word.end(), [](char c) { return is_digit(c) || c == '.'; });
  return only_digits_and_dots && !word.empty() && is_digit(word.front()) && is_digit(word.back()) &&
         word.find('.') != std::string_view::npos;
}

}  // namespace

std::string parse_driver_version(std::string_view text) {
  // "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build ...", then the compiler's line.
  std::istringstream words{std::string(text.substr(0, text.find('\n')))};
  const auto found = std::find_if(std::istream_iterator<std::string>(words), std::istream_iterator<std::string>(),
                                  [](const std::string& word) { return is_version(word); });
  return found == std::istream_iterator<std::string>() ? std::string() : *found;
}

std::string gpu_driver_version() {
  std::ifstream file(kVersionFile);
  std::string line;
  std::getline(file, line);
  return parse_driver_version(line);
}

}  // namespace epistle
