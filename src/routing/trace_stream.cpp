#include "routing/trace_stream.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "epistle/error.hpp"

namespace epistle {
namespace {

constexpr std::size_t kBufferBytes = std::size_t{256} * 1024;

// Of uncompressed data: some ten reports a second at the speed of the parser.
constexpr std::int64_t kProgressIntervalBytes = std::int64_t{16} * 1024 * 1024;

bool is_blank(char character) { return character == ' ' || character == '\t' || character == '\r'; }

}  // namespace

TraceStream::TraceStream(std::string path, Progress on_progress)
    : path_(std::move(path)), on_progress_(std::move(on_progress)), input_(path_), buffer_(kBufferBytes) {}

bool TraceStream::next_line() {
  for (;;) {
    if (!leave_line()) return false;
    ++line_;
    do {
      setg(eback(), std::find_if_not(gptr(), egptr(), is_blank), egptr());
    } while (gptr() == egptr() && underflow() != traits_type::eof());
    if (gptr() != egptr()) return true;
  }
}

/// Moves the get area to the start of the next line; false at the end of the file.
bool TraceStream::leave_line() {
  while (!at_newline_) {
    if (!refill()) return false;
  }
  const auto get_end = egptr() == nullptr ? std::size_t{0} : static_cast<std::size_t>(egptr() - buffer_.data());
  std::size_t next_begin = line_ == 0 ? 0 : get_end + 1;  // past the newline
  // Empty lines in a row are passed over at once: a file may hold nothing else.
  for (; next_begin < filled_end_ && buffer_[next_begin] == '\n'; ++next_begin) ++line_;
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
  const std::size_t num_read = input_.read(buffer_.data(), buffer_.size());
  if (num_read == 0) {
    if (!input_.damage().empty()) fail_corrupt(std::string(input_.damage()));
    at_end_ = true;
    at_newline_ = false;
    setg(nullptr, nullptr, nullptr);
    report_progress();
    return false;
  }
  filled_end_ = num_read;
  expose_line_part(0);
  bytes_since_report_ += static_cast<std::int64_t>(num_read);
  if (bytes_since_report_ >= kProgressIntervalBytes) report_progress();
  return true;
}

TraceStream::int_type TraceStream::underflow() {
  if (gptr() != nullptr && gptr() < egptr()) return traits_type::to_int_type(*gptr());
  if (at_newline_ || !refill()) return traits_type::eof();
  // A refill may begin with the newline that ends this line.
  return gptr() < egptr() ? traits_type::to_int_type(*gptr()) : traits_type::eof();
}

char TraceStream::skip_line() {
  char last = '\0';
  for (;;) {
    const char* end = egptr();
    while (end != gptr() && is_blank(end[-1])) --end;
    if (end != gptr()) last = end[-1];
    setg(eback(), egptr(), egptr());
    if (at_newline_ || !refill()) return last;
  }
}

void TraceStream::report_progress() {
  bytes_since_report_ = 0;
  if (on_progress_) on_progress_(input_.bytes_read(), input_.num_bytes());
}

void TraceStream::fail_corrupt(const std::string& message) const {
  // Data damaged from the first byte on leaves no line to be in.
  const std::int64_t line = std::max<std::int64_t>(line_, 1);
  throw Error(ErrorCode::kCorruptInput, fmt::format("trace '{}', line {}: {}", path_, line, message));
}

}  // namespace epistle
