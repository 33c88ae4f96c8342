// Feeds the JSON of one trace line to a TraceLayerBuilder, value by value; nothing of the text is stored.
#pragma once

#include <cstdint>
#include <optional>

#include "routing/trace_layer_builder.hpp"
#include "routing/trace_stream.hpp"

namespace epistle {

/// What the reader of a line wants to know while it is parsed.
class TraceLineObserver {
 public:
  virtual ~TraceLineObserver() = default;

  /// "layer" was read; false = the rest of the line is of no interest.
  [[nodiscard]] virtual bool on_layer_number(std::int64_t layer) = 0;
  /// The first column is about to begin, with the headers that were read so far.
  virtual void before_columns(TraceLayerBuilder& builder) = 0;
};

/// Parses the rest of the current line. False when the observer lost interest; then the builder must not be used.
/// Throws Error(kCorruptInput) for anything that is not one layer.
[[nodiscard]] bool parse_trace_line(TraceStream& source, TraceLayerBuilder& builder, TraceLineObserver& observer);

}  // namespace epistle
