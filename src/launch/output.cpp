#include "launch/output.hpp"

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

namespace epistle {
namespace {

constexpr std::size_t kPipeBytes = 65536;  // the capacity of a pipe, see pipe(7)
// A program that never ends its line must not fill the launcher's memory: longer lines are broken here.
constexpr std::size_t kMaxLineBytes = std::size_t{1} << 20;
// Enough for the largest pipe an unprivileged process may ask for (1 MiB), and an end for a stranger that keeps
// writing.
constexpr int kMaxFinalReads = 64;

bool is_same_file(int a, int b) {
  struct stat first {};
  struct stat second {};
  return ::fstat(a, &first) == 0 && ::fstat(b, &second) == 0 && first.st_dev == second.st_dev &&
         first.st_ino == second.st_ino;
}

/// Whole lines where they fit into what a pipe takes in one piece.
std::size_t chunk_bytes(std::string_view text) {
  if (text.size() <= PIPE_BUF) return text.size();
  const std::size_t line_end = text.substr(0, PIPE_BUF).rfind('\n');
  return line_end == std::string_view::npos ? std::size_t{PIPE_BUF} : line_end + 1;
}

}  // namespace

LabelledOutput::LabelledOutput()
    : sinks_{open_sink(STDOUT_FILENO, "standard output"), open_sink(STDERR_FILENO, "standard error")},
      // Two queues for one file would cut each other's lines.
      stderr_sink_(is_same_file(STDOUT_FILENO, STDERR_FILENO) ? 0 : 1) {}

LabelledOutput::Sink LabelledOutput::open_sink(int target, const char* name) {
  Sink sink{.fd = target, .own = {}, .name = name, .unsent = {}, .abandoned = false, .error = 0};
  struct stat status {};
  const bool can_block = ::fstat(target, &status) == 0 && (S_ISFIFO(status.st_mode) || ::isatty(target) == 1);
  if (can_block) {
    // O_NONBLOCK belongs to the open file, which the ranks and the caller's shell use too; hence one of our own.
    sink.own =
        UniqueFd(::open(fmt::format("/proc/self/fd/{}", target).c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY));
    if (sink.own.valid()) sink.fd = sink.own.get();
  }
  return sink;
}

void LabelledOutput::add(UniqueFd source, std::string label, int target) {
  ::fcntl(source.get(), F_SETFL, O_NONBLOCK);
  streams_.push_back({.source = std::move(source),
                      .label = std::move(label),
                      .sink = target == STDERR_FILENO ? stderr_sink_ : 0,
                      .pending = {},
                      .num_final_reads = 0});
}

void LabelledOutput::say(std::string_view line) { send(sinks_[stderr_sink_], fmt::format("{}\n", line)); }

void LabelledOutput::append_waits(std::vector<pollfd>& waits) const {
  for (const Sink& sink : sinks_) {
    if (!sink.unsent.empty()) waits.push_back({.fd = sink.fd, .events = POLLOUT, .revents = 0});
  }
  for (const Stream& stream : streams_) {
    const bool has_room = sinks_[stream.sink].unsent.size() < kPipeBytes;
    if (stream.source.valid() && has_room) {
      waits.push_back({.fd = stream.source.get(), .events = POLLIN, .revents = 0});
    }
  }
}

void LabelledOutput::pump(bool has_writers) {
  for (Sink& sink : sinks_) flush(sink);
  // One read per stream and round, so that a rank that writes without pause does not silence the others.
  for (Stream& stream : streams_) pump(stream, has_writers);
}

bool LabelledOutput::done() const {
  return std::all_of(sinks_.begin(), sinks_.end(), [](const Sink& sink) { return sink.unsent.empty(); }) &&
         std::none_of(streams_.begin(), streams_.end(), [](const Stream& stream) { return stream.source.valid(); });
}

void LabelledOutput::abandon() {
  for (Stream& stream : streams_) {
    if (stream.source.valid() || !stream.pending.empty()) sinks_[stream.sink].abandoned = true;
    stream.source.reset();
    stream.pending.clear();
  }
  for (Sink& sink : sinks_) {
    if (!sink.unsent.empty()) sink.abandoned = true;
    sink.unsent.clear();
  }
}

std::optional<std::string> LabelledOutput::loss() const {
  for (std::size_t i = 0; i < sinks_.size(); ++i) {
    const Sink& sink = sinks_[i];
    // Where nobody reads standard error, a word about it would only block whoever says it.
    if (sink.error == 0 && (!sink.abandoned || i == stderr_sink_)) continue;
    return fmt::format("output was lost: cannot write to {}: {}; check where it goes, and the free space there",
                       sink.name, sink.error != 0 ? std::strerror(sink.error) : "nobody reads it");
  }
  return std::nullopt;
}

void LabelledOutput::pump(Stream& stream, bool has_writers) {
  const Sink& sink = sinks_[stream.sink];
  do {
    if (!stream.source.valid() || sink.unsent.size() >= kPipeBytes) return;
    read_once(stream, has_writers);
  } while (!has_writers);
}

void LabelledOutput::read_once(Stream& stream, bool has_writers) {
  // Where the reader has left, the ranks learn it as they would without this process between them.
  if (sinks_[stream.sink].error == EPIPE) return close(stream);
  std::array<char, kPipeBytes> chunk;
  const ssize_t num_read = ::read(stream.source.get(), chunk.data(), chunk.size());
  if (num_read < 0 && errno == EINTR) return;
  const bool is_last = !has_writers && (num_read < 0 || ++stream.num_final_reads > kMaxFinalReads);
  if (num_read > 0) {
    stream.pending.append(chunk.data(), static_cast<std::size_t>(num_read));
    if (stream.pending.size() > kMaxLineBytes && stream.pending.find('\n') == std::string::npos) stream.pending += '\n';
    take_lines(stream);
  }
  if (num_read == 0 || is_last) close(stream);
}

void LabelledOutput::close(Stream& stream) {
  if (!stream.pending.empty()) {
    stream.pending += '\n';
    take_lines(stream);
  }
  stream.source.reset();
}

void LabelledOutput::take_lines(Stream& stream) {
  std::string text;
  std::size_t line_begin = 0;
  for (std::size_t line_end = stream.pending.find('\n'); line_end != std::string::npos;
       line_end = stream.pending.find('\n', line_begin)) {
    text += stream.label;
    text.append(stream.pending, line_begin, line_end + 1 - line_begin);
    line_begin = line_end + 1;
  }
  stream.pending.erase(0, line_begin);
  send(sinks_[stream.sink], text);
}

void LabelledOutput::send(Sink& sink, std::string_view text) {
  if (sink.error != 0) return;
  sink.unsent += text;
  flush(sink);
}

void LabelledOutput::flush(Sink& sink) {
  std::string_view left = sink.unsent;
  while (!left.empty()) {
    // Where the file could not be opened again: a pipe that is ready takes a chunk at once.
    pollfd ready{.fd = sink.fd, .events = POLLOUT, .revents = 0};
    if (::poll(&ready, 1, 0) <= 0) break;
    const ssize_t written = ::write(sink.fd, left.data(), chunk_bytes(left));
    if (written >= 0) {
      left.remove_prefix(static_cast<std::size_t>(written));
    } else if (errno == EAGAIN) {
      break;
    } else if (errno != EINTR) {
      sink.error = errno;
      left = {};
    }
  }
  sink.unsent.erase(0, sink.unsent.size() - left.size());
}

}  // namespace epistle
