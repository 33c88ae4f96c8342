#include "routing/trace_stream.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <string_view>
#include <system_error>
#include <utility>

#include <zlib.h>

#include <fmt/format.h>

#include "epistle/error.hpp"

namespace epistle {
namespace {

constexpr std::size_t kBufferBytes = std::size_t{256} * 1024;

// Of uncompressed data: some ten reports a second at the speed of the parser.
constexpr std::int64_t kProgressIntervalBytes = std::int64_t{16} * 1024 * 1024;

// zlib's messages are "path: what happened".
constexpr std::string_view kSeparator = ": ";

bool is_blank(int character) { return character == ' ' || character == '\t' || character == '\r'; }

[[noreturn]] void fail_open(const std::string& path, const std::string& reason) {
  throw Error(ErrorCode::kNotFound,
              fmt::format("cannot read the trace '{}': {}; give a JSON lines file, plain or gzip", path, reason));
}

}  // namespace

void TraceStream::CloseFile::operator()(gzFile_s* file) const noexcept { gzclose(file); }

TraceStream::TraceStream(std::string path, Progress on_progress)
    : path_(std::move(path)), on_progress_(std::move(on_progress)), buffer_(kBufferBytes) {
  std::error_code error;
  // Opening a directory succeeds and only reading it fails, so it is told apart here.
  if (std::filesystem::is_directory(path_, error)) fail_open(path_, "it is a directory");
  errno = 0;
  file_.reset(gzopen(path_.c_str(), "rb"));
  if (!file_) fail_open(path_, errno != 0 ? std::generic_category().message(errno) : "no memory to open it");
  gzbuffer(file_.get(), static_cast<unsigned>(kBufferBytes));
  const std::uintmax_t size = std::filesystem::file_size(path_, error);
  file_bytes_ = error ? 0 : static_cast<std::int64_t>(size);  // a pipe has no size
}

bool TraceStream::next_line() {
  for (;;) {
    if (!leave_line()) return false;
    ++line_;
    while (is_blank(sgetc())) sbumpc();
    if (sgetc() != traits_type::eof()) return true;
  }
}

/// Moves the get area to the start of the next line; false at the end of the file.
bool TraceStream::leave_line() {
  while (!at_newline_) {
    if (!refill()) return false;
  }
  const auto get_end = egptr() == nullptr ? std::size_t{0} : static_cast<std::size_t>(egptr() - buffer_.data());
  const std::size_t next_begin = line_ == 0 ? 0 : get_end + 1;  // past the newline
  if (next_begin < filled_end_) {
    expose_line_part(next_begin);
    return true;
  }
  return refill();
}

void TraceStream::expose_line_part(std::size_t begin) {
  char* const first = buffer_.data() + begin;
  char* const filled_end = buffer_.data() + filled_end_;
  char* const newline = static_cast<char*>(std::memchr(first, '\n', filled_end_ - begin));
  at_newline_ = newline != nullptr;
  setg(first, first, at_newline_ ? newline : filled_end);
}

/// Replaces the buffer by the bytes that follow it in the file; false at the end of the file.
bool TraceStream::refill() {
  if (at_end_) return false;
  const int num_read = gzread(file_.get(), buffer_.data(), static_cast<unsigned>(buffer_.size()));
  // A truncated gzip stream is reported after its last whole byte, and only by gzerror.
  int code = Z_OK;
  if (num_read == 0) gzerror(file_.get(), &code);
  if (num_read < 0 || code != Z_OK) fail_read();
  if (num_read == 0) {
    at_end_ = true;
    at_newline_ = false;
    setg(nullptr, nullptr, nullptr);
    report_progress(file_bytes_);
    return false;
  }
  filled_end_ = static_cast<std::size_t>(num_read);
  expose_line_part(0);
  bytes_since_report_ += num_read;
  if (bytes_since_report_ >= kProgressIntervalBytes) report_progress(gzoffset(file_.get()));
  return true;
}

TraceStream::int_type TraceStream::underflow() {
  if (gptr() != nullptr && gptr() < egptr()) return traits_type::to_int_type(*gptr());
  if (at_newline_ || !refill()) return traits_type::eof();
  // A refill may begin with the newline that ends this line.
  return gptr() < egptr() ? traits_type::to_int_type(*gptr()) : traits_type::eof();
}

void TraceStream::report_progress(std::int64_t bytes_read) {
  bytes_since_report_ = 0;
  if (on_progress_) on_progress_(bytes_read, file_bytes_);
}

void TraceStream::fail_corrupt(const std::string& message) const {
  // Data damaged from the first byte on leaves no line to be in.
  const std::int64_t line = std::max<std::int64_t>(line_, 1);
  throw Error(ErrorCode::kCorruptInput, fmt::format("trace '{}', line {}: {}", path_, line, message));
}

void TraceStream::fail_read() const {
  int code = Z_OK;
  std::string_view message = gzerror(file_.get(), &code);
  if (message.starts_with(path_)) message.remove_prefix(std::min(path_.size() + kSeparator.size(), message.size()));
  if (code == Z_ERRNO) {
    throw Error(ErrorCode::kSystem, fmt::format("reading the trace '{}', line {}: {}", path_, line_, message));
  }
  if (code == Z_BUF_ERROR) {
    fail_corrupt("the gzip data ends too early; the file is truncated, copy or record it again");
  }
  fail_corrupt(fmt::format("the gzip data is damaged ({}); copy or record the file again", message));
}

}  // namespace epistle
