#include "core/whole_file.hpp"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <optional>
#include <vector>

#include <fmt/format.h>

#include "epistle/error.hpp"

#include "core/growing_memory.hpp"

namespace epistle {

std::string read_whole_stream(std::istream& stream, const std::string& name, std::size_t max_bytes) {
  constexpr std::size_t kBlockBytes = std::size_t{1} << 16;
  std::string text;
  std::vector<char> block(kBlockBytes);
  GrowingMemory memory("the bytes of a file", "give a smaller one, or more memory");
  while (stream.read(block.data(), static_cast<std::streamsize>(block.size())) || stream.gcount() > 0) {
    memory.add(stream.gcount());
    text.append(block.data(), static_cast<std::size_t>(stream.gcount()));
    if (text.size() > max_bytes) {
      throw Error(ErrorCode::kCorruptInput, fmt::format("{}: it is larger than {} bytes", name, max_bytes));
    }
  }
  if (stream.bad()) throw Error(ErrorCode::kCorruptInput, fmt::format("{}: it cannot be read", name));
  return text;
}

std::string read_whole_file(const std::string& path, std::size_t max_bytes) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) {
    throw Error(ErrorCode::kNotFound, fmt::format("cannot open {}: {}; check the path", path, std::strerror(errno)));
  }
  return read_whole_stream(stream, path, max_bytes);
}

std::optional<std::string> read_kernel_file(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) return std::nullopt;
  try {
    // Not through iterators: the stream's buffer throws what the stream only notes.
    return read_whole_stream(stream, path);
  } catch (const Error&) {
    return std::nullopt;
  }
}

}  // namespace epistle
