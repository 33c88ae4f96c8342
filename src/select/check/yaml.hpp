// YAML (and JSON, which is a part of it) as a tree whose nodes know their lines.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace epistle::check {

enum class YamlKind : std::int32_t { kNull, kScalar, kSequence, kMap, kAlias };

struct YamlNode {
  YamlKind kind = YamlKind::kNull;
  std::int32_t line = 0;
  std::string text = {};                   ///< kScalar
  bool block = false;                      ///< kScalar written over several lines, which begin behind `line`
  std::vector<std::size_t> children = {};  ///< kSequence: items; kMap: key, value, key, value
  std::size_t target = 0;                  ///< kAlias: the node that it stands for
};

/// Nodes refer to each other by index: nothing is copied where an alias is used a million times.
struct YamlTree {
  std::vector<YamlNode> nodes;
  std::vector<std::size_t> documents;

  /// The node itself, behind aliases.
  [[nodiscard]] const YamlNode& at(std::size_t node) const;
};

/// Throws kCorruptInput ("FILE:LINE: ...").
[[nodiscard]] YamlTree parse_yaml(std::string_view text, const std::string& file);

}  // namespace epistle::check
