// Recorded routing: JSON lines, one object per layer, plain or gzip.
//   {"layer": 1, "num_experts": 64, "top_k": 6, "num_tokens": 8222, "expert_ids": [[...], ...], "weights": [[...],
//   ...]}
//
// The keys may come in any order, and there may be others. A layer stands in one line, and there are at most 65,536 of
// them, with at most 1,048,576 experts each. No string, key or number is longer than 65,536 bytes. Nothing but gzip
// members may stand in a gzip file. So memory stays below 50 MB besides the tokens that are kept, whatever the bytes.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "epistle/export.hpp"
#include "epistle/routing.hpp"

namespace epistle {

/// One layer of a trace, whole.
struct TraceLayer {
  std::int32_t layer = 0;
  RoutingTable table;
};

/// What a layer holds, without its tokens.
struct TraceLayerSummary {
  std::int32_t layer = 0;
  std::int32_t num_experts = 0;
  std::int32_t top_k = 0;
  std::int64_t num_tokens = 0;
  std::int64_t num_dropped = 0;                 ///< entries that are kNoExpert
  std::vector<std::int64_t> tokens_per_expert;  ///< [num_experts]
};

struct TraceReadOptions {
  std::int32_t layer = -1;       ///< -1 = the first layer of the file
  std::int64_t max_tokens = -1;  ///< tokens to keep in memory; -1 = all of the layer
};

/// Reads one layer. The file is parsed as a stream: memory is that of the tokens kept, whatever the file's size. It is
/// read to its end, so that damage behind the layer shows; lines of other layers are passed over without a look at
/// their tokens. Throws kNotFound (no file, no such layer: lists the layers there are) or kCorruptInput (with the line
/// number) for empty, truncated or malformed files, layers that stand twice, ids out of range or repeated in a row, and
/// counts that contradict the arrays.
[[nodiscard]] EPISTLE_API TraceLayer read_trace_layer(const std::string& path, const TraceReadOptions& options = {});

/// Calls `on_layer` once per layer, in file order, in memory independent of the number of tokens. Throws as
/// read_trace_layer does.
/// `on_progress` (may be empty) is called now and then with the compressed bytes read so far and the file's size.
EPISTLE_API void summarize_trace(
    const std::string& path, const std::function<void(const TraceLayerSummary&)>& on_layer,
    const std::function<void(std::int64_t bytes_read, std::int64_t bytes_total)>& on_progress = {});

}  // namespace epistle
