// A folder for files between this command and processes that it starts.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>

namespace epistle::cli {

/// Gone with its content at the end.
class TempFolder {
 public:
  /// Throws kSystem where none can be made.
  TempFolder();
  ~TempFolder();
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  [[nodiscard]] std::string file(std::string_view name) const { return (path_ / name).string(); }
  /// Throws kSystem where the file does not take all of it.
  static void write(const std::string& path, const void* data, std::size_t num_bytes);

 private:
  std::filesystem::path path_;
};

}  // namespace epistle::cli
