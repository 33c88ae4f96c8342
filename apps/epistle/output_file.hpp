// A file that a result goes to.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace epistle::cli {

/// Writes all of `text`, waiting where `fd` takes no more for now. Throws kSystem, which names `target`.
void write_all(int fd, std::string_view text, std::string_view target);

class OutputFile {
 public:
  /// "-" is standard output.
  explicit OutputFile(std::string target);

  /// Throws kSystem where write cannot work.
  void check() const;

  /// A regular file is written whole or not at all. Throws kSystem.
  void write(std::string_view content) const;

 private:
  [[nodiscard]] std::filesystem::path folder() const;
  void write_in_place(std::string_view content) const;
  void replace(std::string_view content) const;

  std::string target_;          // as given
  std::filesystem::path path_;  // behind all links
  int fd_ = -1;                 // where the target names an open descriptor of this process
};

}  // namespace epistle::cli
