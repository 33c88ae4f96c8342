// What the ranks and the launcher write, on its way to the standard streams: never mixed within a line, and never
// waited for, since whoever looks after processes must not hang on a reader that does not read.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "group/shared_memory.hpp"

struct pollfd;

namespace epistle {

class LabelledOutput {
 public:
  LabelledOutput();

  /// Lines read from `source` go to the descriptor `target` (1 or 2), each behind `label`.
  void add(UniqueFd source, std::string label, int target);

  /// A line of the launcher itself, for standard error.
  void say(std::string_view line);

  /// Appends what to wait for to `waits`.
  void append_waits(std::vector<pollfd>& waits) const;

  /// Passes on what has arrived, as far as the targets take it; returns at once where nothing has. Without `writers`,
  /// a source that is empty stays so and is closed, whoever else holds the other end.
  void pump(bool has_writers);

  /// Nothing is left to read or to write.
  [[nodiscard]] bool done() const;

  /// Drops what is left.
  void abandon();

  /// What was lost and why, in words; nothing where everything arrived or there is nobody to tell.
  [[nodiscard]] std::optional<std::string> loss() const;

 private:
  struct Sink {
    int fd = -1;
    UniqueFd own;  ///< what `fd` is where it could be opened again, not to block
    const char* name = "";
    std::string unsent;
    bool abandoned = false;
    int error = 0;  ///< errno of a write; what comes after it is dropped
  };
  struct Stream {
    UniqueFd source;
    std::string label;
    std::size_t sink = 0;
    std::string pending;  ///< the beginning of an unfinished line
    int num_final_reads = 0;
  };

  static Sink open_sink(int target, const char* name);
  void pump(Stream& stream, bool has_writers);
  void read_once(Stream& stream, bool has_writers);
  void take_lines(Stream& stream);
  void close(Stream& stream);
  void send(Sink& sink, std::string_view text);
  void flush(Sink& sink);

  std::array<Sink, 2> sinks_;
  std::size_t stderr_sink_ = 1;
  std::vector<Stream> streams_;
};

}  // namespace epistle
