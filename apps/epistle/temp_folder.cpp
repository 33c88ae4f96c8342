#include "temp_folder.hpp"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <system_error>

#include <unistd.h>

#include <fmt/format.h>

#include "epistle/error.hpp"

namespace epistle::cli {

TempFolder::TempFolder() {
  std::string pattern = (std::filesystem::temp_directory_path() / "epistle-XXXXXX").string();
  if (::mkdtemp(pattern.data()) == nullptr) {
    throw Error(ErrorCode::kSystem, fmt::format("cannot make a folder {}: {}; TMPDIR chooses another place", pattern,
                                                std::strerror(errno)));
  }
  path_ = pattern;
}

TempFolder::~TempFolder() {
  std::error_code ignored;  // a destructor has nobody to tell
  std::filesystem::remove_all(path_, ignored);
}

void TempFolder::write(const std::string& path, const void* data, std::size_t num_bytes) {
  std::ofstream stream(path, std::ios::binary);
  stream.write(static_cast<const char*>(data), static_cast<std::streamsize>(num_bytes));
  if (!stream.flush()) throw Error(ErrorCode::kSystem, fmt::format("cannot write {}; is there room?", path));
}

}  // namespace epistle::cli
