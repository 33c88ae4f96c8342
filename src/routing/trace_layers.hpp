// The layers that a trace was found to hold.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "routing/trace_stream.hpp"

namespace epistle {

/// Layers for a message: a few ranges in the order of the file, and how many more there are.
class LayerList {
 public:
  void add(std::int64_t layer);
  [[nodiscard]] std::int64_t size() const noexcept { return size_; }
  [[nodiscard]] std::string text() const;

 private:
  std::vector<std::pair<std::int64_t, std::int64_t>> ranges_;  // first and last layer of each
  std::int64_t num_listed_ = 0;                                // layers that these hold
  std::int64_t size_ = 0;
};

/// Every layer of a file, to be told of each as its line is read.
class TraceLayers {
 public:
  /// Keeps a reference to `source`, through which it complains.
  explicit TraceLayers(const TraceStream& source) : source_(&source) {}

  /// The current line holds `layer`. Throws kCorruptInput where another line did, and for more layers than any model
  /// has.
  void add(std::int64_t layer);

  /// Throws kCorruptInput, at the end of the file, where there was none.
  void require_some() const;

  [[nodiscard]] std::string text() const { return list_.text(); }

 private:
  const TraceStream* source_;
  std::unordered_map<std::int64_t, std::int64_t> line_of_;
  LayerList list_;
};

}  // namespace epistle
