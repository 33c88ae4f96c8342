#include "select/check/flag_names.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <set>

#include "core/edit_distance.hpp"

namespace epistle::check {
namespace {

using Names = std::set<std::string_view>;

Names split(std::string_view text) {
  Names names;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find(' '), text.size());
    if (end > 0) names.insert(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return names;
}

const Names& names_of(Engine engine) {
  static const std::array<Names, 4> all = {Names{}, split(megatron_flag_names()), split(vllm_flag_names()),
                                           split(sglang_flag_names())};
  return all[static_cast<std::size_t>(engine)];
}

/// A slip of the keyboard, or two in a long name.
std::size_t tolerance(std::string_view name) { return name.size() <= 6 ? 1 : name.size() <= 14 ? 2 : 3; }

}  // namespace

bool is_known_flag(Engine engine, std::string_view name) {
  const Names& names = names_of(engine);
  if (names.contains(name)) return true;
  // vLLM nests: "--eplb-config.window_size".
  if (const std::size_t dot = name.find('.'); dot != std::string_view::npos) return names.contains(name.substr(0, dot));
  return name.starts_with("no-") && names.contains(name.substr(3));
}

std::vector<std::string_view> flags_that_begin_with(Engine engine, std::string_view name) {
  std::vector<std::string_view> found;
  const Names& names = names_of(engine);
  for (auto at = names.lower_bound(name); at != names.end() && at->starts_with(name); ++at) found.push_back(*at);
  return found;
}

std::string_view closest_of(const std::vector<std::string_view>& values, std::string_view value) {
  constexpr std::size_t kLongestName = 80;  // longer than any; a distance costs the product of both lengths
  if (value.empty() || value.size() > kLongestName) return {};
  std::string_view closest;
  std::size_t best = tolerance(value) + 1;
  for (const std::string_view candidate : values) {
    const std::size_t longer = std::max(candidate.size(), value.size());
    if (longer - std::min(candidate.size(), value.size()) >= best) continue;
    const std::size_t distance = edit_distance(candidate, value);
    if (distance >= best) continue;
    best = distance;
    closest = candidate;
  }
  return closest;
}

std::string_view closest_flag(Engine engine, std::string_view name) {
  const Names& names = names_of(engine);
  return closest_of({names.begin(), names.end()}, name);
}

}  // namespace epistle::check
