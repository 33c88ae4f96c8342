#include "topology/node_affinity.hpp"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <string_view>

#include <sched.h>

namespace epistle {
namespace {

/// "0-3,8" as the kernel writes it: calls `take` with every number below `end`; false where it is no such list.
template <typename Take>
bool read_cpu_list(std::string_view list, std::int32_t end, Take take) {
  while (!list.empty()) {
    const std::string_view item = list.substr(0, list.find(','));
    list.remove_prefix(std::min(item.size() + 1, list.size()));
    std::int32_t first = 0;
    const auto [dash, failed] = std::from_chars(item.data(), item.data() + item.size(), first);
    if (failed != std::errc() || first < 0) return false;
    std::int32_t last = first;
    if (dash != item.data() + item.size()) {
      if (*dash != '-') return false;
      if (std::from_chars(dash + 1, item.data() + item.size(), last).ec != std::errc() || last < first) return false;
    }
    for (std::int32_t unit = first; unit <= last && unit < end; ++unit) take(unit);
  }
  return true;
}

}  // namespace

std::optional<NodeAffinity> node_affinity(std::int32_t node, const std::string& folder) {
  if (node < 0) return std::nullopt;
  std::ifstream file(folder + "/node" + std::to_string(node) + "/cpulist");
  std::string list;
  if (!std::getline(file, list)) return std::nullopt;
  cpu_set_t open;
  CPU_ZERO(&open);
  if (sched_getaffinity(0, sizeof(open), &open) != 0) return std::nullopt;
  NodeAffinity affinity;
  const bool whole = read_cpu_list(list, CPU_SETSIZE, [&](std::int32_t unit) {
    ++affinity.num_units;
    if (CPU_ISSET(static_cast<std::size_t>(unit), &open)) ++affinity.num_open;
  });
  return whole ? std::optional(affinity) : std::nullopt;
}

}  // namespace epistle
