// Configurations of engines as data: configs/*.txt, one after the other, each behind a line that says what must come
// out.
//
//   ### name file=run.sh hardware=h100-hgx version=0.16 would_run=hybridep rule=... severity=error line=3 flag=--x
//   besides=... endings=crlf
//
// file: as what it is read, by the ending. rule, severity, line and flag: of the planted mistake, where there is one.
// besides: rules that find more in it, as one mistake leads to another. endings: lines as some editors end them.
#pragma once

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "select/check/check.hpp"
#include "topology/cluster.hpp"

namespace epistle::test {

struct CheckedConfig {
  std::string name;
  std::map<std::string, std::string> expected;
  std::string text;

  [[nodiscard]] std::string get(const std::string& key) const {
    const auto found = expected.find(key);
    return found == expected.end() ? std::string() : found->second;
  }
  [[nodiscard]] bool allows(const std::string& rule) const {
    return ("," + get("besides") + ",").find("," + rule + ",") != std::string::npos;
  }
};

inline CheckedConfig read_header(const std::string& line) {
  CheckedConfig config;
  std::stringstream words(line.substr(4));
  words >> config.name;
  for (std::string word; words >> word;) {
    const std::size_t equals = word.find('=');
    config.expected[word.substr(0, equals)] = word.substr(equals + 1);
  }
  return config;
}

/// Of the files whose names end with `ending`.
[[nodiscard]] inline std::vector<CheckedConfig> checked_configs(const std::string& part) {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(EPISTLE_SOURCE_DIR "/tests/unit/select/configs"))
    if (entry.path().filename().string().find(part) != std::string::npos) paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  std::vector<CheckedConfig> configs;
  for (const auto& path : paths) {
    std::ifstream stream(path);
    for (std::string line; std::getline(stream, line);) {
      if (line.starts_with("### ")) {
        configs.push_back(read_header(line));
      } else if (!configs.empty()) {
        configs.back().text += line + (configs.back().get("endings") == "crlf" ? "\r\n" : "\n");
      }
    }
  }
  return configs;
}

[[nodiscard]] inline check::CheckReport check_config_case(const CheckedConfig& config) {
  check::CheckOptions options;
  const check::ConfigFile file = check::parse_config(config.text, config.get("file"));
  // As the command does it: what is named outweighs what the file names.
  const std::string hardware = config.get("hardware").empty() ? file.hardware : config.get("hardware");
  if (!hardware.empty()) options.cluster = find_cluster(hardware);
  if (const auto version = parse_version(config.get("version"))) {
    options.megatron = version;
    options.vllm = version;
    options.sglang = version;
  }
  return check::check_config(file, options);
}

}  // namespace epistle::test
