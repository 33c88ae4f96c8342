// Which folder may include what. The table is the written form of the layers in docs/architecture.md.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "repo/source_tree.hpp"

namespace repo_test {

/// One folder of the project and the project headers it may include. Folders not named here (tests, bench) may use
/// anything.
struct Layer {
  std::string_view folder;
  std::vector<std::string_view> may_use;   ///< folders, as they appear in an include ("core", "epistle")
  std::vector<std::string_view> must_not;  ///< prefixes of includes that are wrong although their folder is allowed
};

[[nodiscard]] const std::vector<Layer>& layers();

/// Violations in one file, each as "path:line: what is wrong"; empty when the file keeps the rules.
[[nodiscard]] std::vector<std::string> check_includes(const SourceFile& file);

}  // namespace repo_test
