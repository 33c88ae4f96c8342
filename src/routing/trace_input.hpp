// The bytes of a trace file, inflated where it is gzip.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

struct z_stream_s;  // zlib's; its header stays out of ours

namespace epistle {

/// Reads a plain file, or one of gzip members that follow each other and nothing else: zlib's gzread drops what stands
/// behind a member without a word, so the members are told apart here. Memory is a fixed buffer and zlib's window.
class TraceInput {
 public:
  /// Throws kNotFound for files that cannot be opened.
  explicit TraceInput(const std::string& path);

  /// Writes up to `size` bytes to `target` and returns their number: 0 at the end of the file, and where its data is
  /// damaged. Throws kSystem for failing reads.
  [[nodiscard]] std::size_t read(char* target, std::size_t size);

  /// What is wrong with the data that follows, once all before it has been read; empty = nothing.
  [[nodiscard]] std::string_view damage() const noexcept { return damage_; }

  /// Of the file, compressed.
  [[nodiscard]] std::int64_t bytes_read() const noexcept { return bytes_read_; }
  /// 0 where a file has no size, as a pipe.
  [[nodiscard]] std::int64_t num_bytes() const noexcept { return num_bytes_; }

 private:
  struct CloseFile {
    void operator()(std::FILE* file) const noexcept { std::fclose(file); }
  };
  struct EndInflate {
    void operator()(z_stream_s* stream) const noexcept;
  };

  [[nodiscard]] bool fill();
  void start_inflate();
  void inflate_more();

  std::string path_;
  std::unique_ptr<std::FILE, CloseFile> file_;
  std::int64_t num_bytes_ = 0;
  std::int64_t bytes_read_ = 0;
  std::vector<char> packed_;
  std::size_t packed_begin_ = 0;  // of packed_; what was taken stands before it
  std::size_t packed_end_ = 0;
  std::unique_ptr<z_stream_s, EndInflate> inflate_;  // null = a plain file
  bool between_members_ = true;
  bool has_member_ = false;  // one that is whole lies behind
  std::string damage_;
};

}  // namespace epistle
