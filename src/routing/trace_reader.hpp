// Reading a part of a trace layer; the public form is epistle/trace.hpp.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "epistle/routing.hpp"
#include "epistle/trace.hpp"

namespace epistle {

/// Tokens [first_token, first_token + num_tokens) of a layer, wrapping round at its end.
struct TraceWindow {
  std::int64_t first_token = 0;
  std::int64_t num_tokens = 0;
};

/// Reads exactly window.num_tokens rows of `layer` (-1 = the first of the file). No more distinct rows are kept in
/// memory than the result has. Throws as read_trace_layer does, and kInvalidArgument for a layer without tokens.
[[nodiscard]] RoutingTable read_trace_window(const std::string& path, std::int32_t layer, const TraceWindow& window);

/// Calls `on_layer` with every layer whole, in file order; memory is that of one layer. Throws as read_trace_layer
/// does.
void read_trace_layers(const std::string& path, const std::function<void(TraceLayer&&)>& on_layer,
                       const std::function<void(std::int64_t bytes_read, std::int64_t bytes_total)>& on_progress = {});

}  // namespace epistle
