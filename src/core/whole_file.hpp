// Reading a file that somebody else wrote, whole.
#pragma once

#include <cstddef>
#include <istream>
#include <optional>
#include <string>

namespace epistle {

/// Of a document that is read for its fields or lines.
inline constexpr std::size_t kMaxDocumentBytes = std::size_t{64} << 20;

/// What a stream has, which need not say beforehand how much that is: no more memory is taken than `max_bytes` ask for.
/// Throws kCorruptInput, with `name` in front, where it cannot be read or has more.
[[nodiscard]] std::string read_whole_stream(std::istream& stream, const std::string& name,
                                            std::size_t max_bytes = kMaxDocumentBytes);
/// The same of a file. Throws kNotFound where it cannot be opened.
[[nodiscard]] std::string read_whole_file(const std::string& path, std::size_t max_bytes = kMaxDocumentBytes);
/// What the kernel says in a file of /proc or /sys; nothing where it cannot be opened or read, as when its process has
/// ended in between.
[[nodiscard]] std::optional<std::string> read_kernel_file(const std::string& path);

}  // namespace epistle
