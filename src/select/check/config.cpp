#include "select/check/config.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>

#include <fmt/format.h>

#include "epistle/error.hpp"

#include "core/ascii.hpp"
#include "core/whole_file.hpp"
#include "select/check/runs.hpp"
#include "select/check/shell.hpp"
#include "select/check/yaml.hpp"

namespace epistle::check {
namespace {

const Setting* find_last(const std::vector<Setting>& settings, std::string_view name) noexcept {
  const auto found =
      std::find_if(settings.rbegin(), settings.rend(), [&](const Setting& setting) { return setting.name == name; });
  return found == settings.rend() ? nullptr : &*found;
}

/// The first line that says something; "key: value" there means YAML.
bool looks_like_yaml(std::string_view text) {
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.starts_with("#!")) return false;
    while (!line.empty() && (line.front() == ' ' || line.front() == '\t')) line.remove_prefix(1);
    if (line.empty() || line.front() == '#' || line.front() == '\r') continue;
    if (line.starts_with("---") && line.find_first_not_of("- \r") == std::string_view::npos) return true;
    if (line.front() == '{') return true;
    const std::size_t colon = line.find(':');
    if (colon == std::string_view::npos || colon == 0) return false;
    const bool ends = colon + 1 == line.size() || line[colon + 1] == ' ' || line[colon + 1] == '\r';
    return ends && line.substr(0, colon).find_first_of(" $=\"'(") == std::string_view::npos;
  }
  return false;
}

bool is_python(std::string_view text, std::string_view name) {
  if (name.ends_with(".py")) return true;
  if (name.find('.') != std::string_view::npos) return false;
  for (const std::string_view start : {"import ", "from ", "cfg.", "\"\"\""}) {
    if (text.starts_with(start)) return true;
  }
  return false;
}

bool is_yaml(std::string_view text, std::string_view name) {
  const std::string lower = to_lower(name);
  constexpr std::array<std::string_view, 3> kYamlEndings = {".yaml", ".yml", ".json"};
  constexpr std::array<std::string_view, 4> kShellEndings = {".sh", ".bash", ".sbatch", ".slurm"};
  const auto ends = [&](std::string_view ending) { return lower.ends_with(ending); };
  if (std::any_of(kYamlEndings.begin(), kYamlEndings.end(), ends)) return true;
  if (std::any_of(kShellEndings.begin(), kShellEndings.end(), ends)) return false;
  return looks_like_yaml(text);
}

}  // namespace

std::string_view to_string(Engine engine) noexcept {
  constexpr std::array<std::string_view, 4> kNames = {"unknown", "megatron", "vllm", "sglang"};
  return kNames[static_cast<std::size_t>(engine)];
}

std::optional<std::int64_t> parse_whole(std::string_view text) noexcept {
  std::int64_t value = 0;
  const char* const end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, value);
  if (text.empty() || error != std::errc() || rest != end) return std::nullopt;
  return value;
}

bool is_false(std::string_view value) noexcept {
  constexpr std::array<std::string_view, 8> kFalse = {"false", "False", "no", "off", "null", "~", "None", "none"};
  return std::find(kFalse.begin(), kFalse.end(), value) != kFalse.end();
}

bool RunConfig::only_infers() const noexcept {
  constexpr std::array<std::string_view, 7> kParts = {"generat", "inference", "infer_", "server",
                                                      "convert", "compare",   "export"};
  return std::any_of(kParts.begin(), kParts.end(),
                     [&](std::string_view part) { return program.find(part) != std::string::npos; });
}

const Setting* RunConfig::find(std::string_view name) const noexcept { return find_last(options, name); }

const Setting* RunConfig::find_environment(std::string_view name) const noexcept {
  return find_last(environment, name);
}

bool RunConfig::has(std::string_view name) const noexcept {
  const Setting* const setting = find(name);
  return setting != nullptr && !is_false(setting->value()) && setting->value() != "0";
}

std::optional<std::int64_t> RunConfig::number(std::string_view name) const noexcept {
  const Setting* const setting = find(name);
  if (setting == nullptr || !setting->known_value) return std::nullopt;
  return parse_whole(setting->value());
}

std::string_view RunConfig::text(std::string_view name, std::string_view otherwise) const noexcept {
  const Setting* const setting = find(name);
  if (setting == nullptr || !setting->known_value || setting->values.empty()) return otherwise;
  return setting->value();
}

std::optional<std::int64_t> RunConfig::world_size() const noexcept {
  if (num_ranks) return num_ranks;
  if (!gpus_per_node || !num_nodes) return std::nullopt;
  std::int64_t product = 0;
  if (__builtin_mul_overflow(*gpus_per_node, *num_nodes, &product)) return std::nullopt;
  return product;
}

ConfigFile parse_config(std::string_view text, const std::string& name) {
  if (text.size() > kMaxConfigBytes) {
    throw Error(ErrorCode::kCorruptInput,
                fmt::format("{} has more than {} bytes; give the command line or the configuration alone", name,
                            kMaxConfigBytes));
  }
  if (text.find('\0') != std::string_view::npos) {
    throw Error(ErrorCode::kCorruptInput, fmt::format("{} is no text: it holds a zero byte", name));
  }
  ConfigFile file;
  file.name = name;
  if (is_python(text, name)) {
    read_python_runs(file, text);
  } else if (is_yaml(text, name)) {
    read_yaml_runs(file, parse_yaml(text, name));
  } else {
    const LinedText service = script_of_service(text, name);
    read_script_runs(file, service.bytes.empty() ? number_lines(text) : service, {});
  }
  return file;
}

ConfigFile read_config(const std::string& path) { return parse_config(read_whole_file(path), path); }

}  // namespace epistle::check
