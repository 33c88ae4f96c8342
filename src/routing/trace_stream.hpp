// The bytes of a trace, plain or gzip, one line at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <streambuf>
#include <string>
#include <vector>

#include "core/growing_memory.hpp"
#include "routing/trace_input.hpp"

namespace epistle {

/// A stream buffer that ends where the current line ends, so that a parser reading from it cannot run into the next
/// line and every complaint has the right line number. Memory is one fixed buffer, however long a line is.
/// Reading throws Error: kCorruptInput for damaged or truncated gzip data, kSystem for failing reads.
class TraceStream : public std::streambuf {
 public:
  using Progress = std::function<void(std::int64_t bytes_read, std::int64_t bytes_total)>;

  /// Throws kNotFound for files that cannot be opened. `on_progress` may be empty.
  explicit TraceStream(std::string path, Progress on_progress = {});

  /// Goes to the next line that holds more than white space, past what is left of the current one, and returns false at
  /// the end of the file.
  [[nodiscard]] bool next_line();

  /// Passes over what is left of the current line; returns the last character of it that is not blank, or 0.
  char skip_line();

  /// Number of the current line, from 1.
  [[nodiscard]] std::int64_t line() const noexcept { return line_; }

  /// Throws kCorruptInput with the path and the line.
  [[noreturn]] void fail_corrupt(const std::string& message) const;

  /// What is kept of the file.
  [[nodiscard]] GrowingMemory& kept() noexcept { return kept_; }

 protected:
  int_type underflow() override;

 private:
  void expose_line_part(std::size_t begin);
  [[nodiscard]] bool refill();
  [[nodiscard]] bool leave_line();
  void report_progress();

  std::string path_;
  Progress on_progress_;
  TraceInput input_;
  std::int64_t bytes_since_report_ = 0;
  std::int64_t line_ = 0;
  std::vector<char> buffer_;
  std::size_t filled_end_ = 0;  // of buffer_
  bool at_newline_ = true;      // the get area ends before a newline, or nothing was read yet
  bool at_end_ = false;         // of the file
  GrowingMemory kept_{"the tokens kept of a trace", "use fewer tokens of it, or more memory"};
};

}  // namespace epistle
