#include "select/check/yaml_sections.hpp"

#include <algorithm>
#include <limits>
#include <map>
#include <string_view>

namespace epistle::check {
namespace {

using Path = std::vector<std::int32_t>;  ///< from the outermost map to the innermost

constexpr std::size_t kNoSplit = std::numeric_limits<std::size_t>::max();

Path path_of(std::int32_t scope, const std::vector<YamlScope>& scopes) {
  Path path;
  while (scope > 0 && static_cast<std::size_t>(scope) < scopes.size()) {
    path.push_back(scope);
    scope = scopes[static_cast<std::size_t>(scope)].parent;
  }
  std::reverse(path.begin(), path.end());
  return path;
}

/// How many maps two fields have in common; kNoSplit where one map holds the other.
std::size_t common_maps(const Path& left, const Path& right) {
  const auto [first, second] = std::mismatch(left.begin(), left.end(), right.begin(), right.end());
  if (first == left.end() || second == right.end()) return kNoSplit;
  return static_cast<std::size_t>(first - left.begin());
}

struct Split {
  Path above;  ///< the maps that all runs share
  bool found = false;
};

/// Fields of one name in maps beside each other; of several such places the outermost.
Split find_split(const std::vector<Setting>& options, const std::vector<Path>& paths) {
  Split split;
  std::map<std::string_view, std::size_t> first_of;
  for (std::size_t idx = 0; idx < options.size(); ++idx) {
    const auto [first, fresh] = first_of.emplace(options[idx].name, idx);
    if (fresh) continue;
    const std::size_t depth = common_maps(paths[first->second], paths[idx]);
    if (depth == kNoSplit || (split.found && depth >= split.above.size())) continue;
    split.found = true;
    split.above.assign(paths[idx].begin(), paths[idx].begin() + static_cast<std::ptrdiff_t>(depth));
  }
  return split;
}

}  // namespace

std::vector<std::vector<Setting>> split_sections(const std::vector<Setting>& options,
                                                 const std::vector<YamlScope>& scopes,
                                                 const std::vector<std::size_t>& merged) {
  std::vector<Path> paths;
  paths.reserve(options.size());
  for (const Setting& option : options) paths.push_back(path_of(option.scope, scopes));
  const Split split = find_split(options, paths);
  if (!split.found) return {options};
  const auto section_of = [&](const Path& path) {
    const bool inside =
        path.size() > split.above.size() && std::equal(split.above.begin(), split.above.end(), path.begin());
    return inside ? path[split.above.size()] : 0;
  };
  std::map<std::int32_t, std::vector<Setting>> sections;
  for (const Path& path : paths) {
    const std::int32_t section = section_of(path);
    if (section == 0) continue;
    const std::size_t node = scopes[static_cast<std::size_t>(section)].node;
    if (std::find(merged.begin(), merged.end(), node) == merged.end())
      sections.emplace(section, std::vector<Setting>{});
  }
  for (std::size_t idx = 0; idx < options.size(); ++idx) {
    const std::int32_t section = section_of(paths[idx]);
    for (auto& [number, settings] : sections) {
      if (section == 0 || section == number) settings.push_back(options[idx]);
    }
  }
  std::vector<std::vector<Setting>> runs;
  for (auto& [number, settings] : sections) runs.push_back(std::move(settings));
  return runs;
}

}  // namespace epistle::check
