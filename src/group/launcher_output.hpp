// Puts a label before every line that the ranks write, without mixing or losing parts of lines.
#pragma once

#include <string>
#include <vector>

#include "group/shared_memory.hpp"

struct pollfd;

namespace epistle {

class LabelledOutput {
 public:
  /// Lines read from `source` go to the descriptor `target`, each behind `label`.
  void add(UniqueFd source, std::string label, int target);

  /// Appends what to wait for to `waits`.
  void append_waits(std::vector<pollfd>& waits) const;

  /// Passes on what has arrived; returns at once where nothing has.
  void pump();

  /// Passes on all that is left, unfinished lines included, and closes the sources. Does not wait for processes that
  /// hold the other end open.
  void finish();

 private:
  struct Stream {
    UniqueFd source;
    std::string label;
    int target = -1;
    std::string pending;  ///< the beginning of an unfinished line
  };

  /// Reads once; false where nothing was there.
  bool pump(Stream& stream);
  static void write_lines(Stream& stream);
  static void close(Stream& stream);

  std::vector<Stream> streams_;
};

}  // namespace epistle
