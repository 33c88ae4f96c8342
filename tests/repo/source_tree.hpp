// The files of the repository as its own tests see them.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace repo_test {

struct SourceFile {
  std::string path;  ///< relative to the repository, with forward slashes
  std::string text;

  [[nodiscard]] std::vector<std::string_view> lines() const;
  [[nodiscard]] bool has_extension(std::initializer_list<std::string_view> extensions) const;
  /// True below `folder` ("src/core").
  [[nodiscard]] bool is_in(std::string_view folder) const;
  /// Executables of scripts/ and .ci/, which have no extension, and shell files.
  [[nodiscard]] bool is_script() const;
};

/// Every text file that belongs to the project, in path order. Build folders and hidden folders other than .ci are left
/// out.
[[nodiscard]] const std::vector<SourceFile>& source_tree();

/// One file; fails the test by throwing when it is missing.
[[nodiscard]] std::string read_source(std::string_view path);

/// One "path:line: text" per line.
[[nodiscard]] std::string join_lines(const std::vector<std::string>& lines);

}  // namespace repo_test
