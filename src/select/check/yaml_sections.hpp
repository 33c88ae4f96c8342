// Which fields of one document belong to which run: "prefill: {...}" and "decode: {...}" are two.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "select/check/config.hpp"

namespace epistle::check {

/// A map of a document: its parent's number (0 is none), and the node that it was read from.
struct YamlScope {
  std::int32_t parent = 0;
  std::size_t node = 0;
};

/// The options of each run. Maps beside each other that have a field in common are runs of their own, with what stands
/// above them; all else is one run. `merged` are nodes that "<<" takes into others, where they are judged. Scopes are
/// numbered from 1; scopes[0] is none.
[[nodiscard]] std::vector<std::vector<Setting>> split_sections(const std::vector<Setting>& options,
                                                               const std::vector<YamlScope>& scopes,
                                                               const std::vector<std::size_t>& merged);

}  // namespace epistle::check
