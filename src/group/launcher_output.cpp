#include "group/launcher_output.hpp"

#include <array>
#include <cerrno>
#include <string_view>

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

namespace epistle {
namespace {

constexpr std::size_t kReadBytes = 65536;  // the capacity of a pipe, see pipe(7)
// A program that never ends its line must not fill the launcher's memory: longer lines are broken here.
constexpr std::size_t kMaxLineBytes = std::size_t{1} << 20;
// Enough for the largest pipe an unprivileged process may ask for (1 MiB), and an end for a process that a rank left
// behind and that keeps writing.
constexpr int kMaxFinalReads = 64;

/// Gives up where the target is gone; the ranks must not block on a reader that left.
void write_all(int target, std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(target, text.data(), text.size());
    if (written >= 0) {
      text.remove_prefix(static_cast<std::size_t>(written));
    } else if (errno == EAGAIN) {
      pollfd wait{.fd = target, .events = POLLOUT, .revents = 0};
      ::poll(&wait, 1, -1);
    } else if (errno != EINTR) {
      return;
    }
  }
}

}  // namespace

void LabelledOutput::add(UniqueFd source, std::string label, int target) {
  ::fcntl(source.get(), F_SETFL, O_NONBLOCK);
  streams_.push_back({.source = std::move(source), .label = std::move(label), .target = target, .pending = {}});
}

void LabelledOutput::append_waits(std::vector<pollfd>& waits) const {
  for (const Stream& stream : streams_) {
    if (stream.source.valid()) waits.push_back({.fd = stream.source.get(), .events = POLLIN, .revents = 0});
  }
}

void LabelledOutput::pump() {
  // One read per stream and round, so that a rank that writes without pause does not silence the others.
  for (Stream& stream : streams_) pump(stream);
}

void LabelledOutput::finish() {
  for (Stream& stream : streams_) {
    for (int round = 0; round < kMaxFinalReads && pump(stream); ++round) {
    }
    close(stream);
  }
}

bool LabelledOutput::pump(Stream& stream) {
  if (!stream.source.valid()) return false;
  std::array<char, kReadBytes> chunk;
  const ssize_t num_read = ::read(stream.source.get(), chunk.data(), chunk.size());
  if (num_read < 0) return errno == EINTR;
  if (num_read == 0) {
    close(stream);
    return false;
  }
  stream.pending.append(chunk.data(), static_cast<std::size_t>(num_read));
  if (stream.pending.size() > kMaxLineBytes && stream.pending.find('\n') == std::string::npos) stream.pending += '\n';
  write_lines(stream);
  return true;
}

void LabelledOutput::close(Stream& stream) {
  if (!stream.pending.empty()) {
    stream.pending += '\n';
    write_lines(stream);
  }
  stream.source.reset();
}

void LabelledOutput::write_lines(Stream& stream) {
  std::string text;
  std::size_t line_begin = 0;
  for (std::size_t line_end = stream.pending.find('\n'); line_end != std::string::npos;
       line_end = stream.pending.find('\n', line_begin)) {
    text += stream.label;
    text.append(stream.pending, line_begin, line_end + 1 - line_begin);
    line_begin = line_end + 1;
  }
  stream.pending.erase(0, line_begin);
  write_all(stream.target, text);
}

}  // namespace epistle
