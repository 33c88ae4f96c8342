#include "routing/trace_reader.hpp"

#include <algorithm>
#include <cstddef>
#include <limits>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "epistle/error.hpp"
#include "epistle/trace.hpp"

#include "routing/trace_layer_builder.hpp"
#include "routing/trace_sax.hpp"
#include "routing/trace_stream.hpp"

namespace epistle {
namespace {

constexpr std::int32_t kFirstLayer = -1;
constexpr std::int64_t kUnknown = -1;
constexpr std::int64_t kAllTokens = std::numeric_limits<std::int64_t>::max();

[[noreturn]] void reject(const std::string& message) { throw Error(ErrorCode::kInvalidArgument, message); }

/// The rows that a window covers in a layer of `layer_tokens` tokens.
RowSelection select_rows(const TraceWindow& window, std::int64_t layer_tokens) {
  if (window.num_tokens >= layer_tokens) return {.head_end = 0, .begin = 0, .end = layer_tokens};
  const std::int64_t begin = window.first_token % layer_tokens;
  const std::int64_t tokens_to_end = layer_tokens - begin;
  if (window.num_tokens <= tokens_to_end) return {.head_end = 0, .begin = begin, .end = begin + window.num_tokens};
  return {.head_end = window.num_tokens - tokens_to_end, .begin = begin, .end = layer_tokens};
}

/// The layers of a file for a message, as ranges in file order.
class LayerList {
 public:
  void add(std::int64_t layer) {
    if (!ranges_.empty() && ranges_.back().second + 1 == layer) {
      ranges_.back().second = layer;
    } else if (ranges_.size() < kMaxRanges) {
      ranges_.emplace_back(layer, layer);
    } else {
      cut_ = true;
    }
  }

  [[nodiscard]] std::string text() const {
    if (ranges_.empty()) return "none";
    std::string text;
    for (const auto& [first, last] : ranges_) {
      if (!text.empty()) text += ", ";
      text += first == last ? fmt::format("{}", first) : fmt::format("{}-{}", first, last);
    }
    return cut_ ? text + ", ..." : text;
  }

 private:
  static constexpr std::size_t kMaxRanges = 64;  // more would not be read

  std::vector<std::pair<std::int64_t, std::int64_t>> ranges_;
  bool cut_ = false;
};

struct ReadRequest {
  std::int32_t layer = kFirstLayer;
  TraceWindow window;
  std::int64_t object_idx = kUnknown;    // the layer's place among the objects of the file, where it is known
  std::int64_t layer_tokens = kUnknown;  // the layer's tokens, where they are known
};

struct FoundLayer {
  TraceLayer layer;
  std::int64_t object_idx = 0;
  std::int64_t layer_tokens = 0;
  RowSelection selection;  // of the rows in `layer`
  bool complete = false;   // false: which rows were wanted became known too late
};

/// Decides, while the headers of a line come in, whether it is the layer wanted and which of its rows to keep.
class RowPicker : public TraceLineObserver {
 public:
  RowPicker(const ReadRequest& request, LayerList& layers) : request_(&request), layers_(&layers) {}

  [[nodiscard]] bool on_layer_number(std::int64_t layer) override {
    layers_->add(layer);
    return wanted_by_place() || layer == request_->layer;
  }

  void before_columns(TraceLayerBuilder& builder) override {
    // Past on_layer_number, a layer number that was read is the one wanted. Without one, nothing is stored on the
    // chance.
    if (!wanted_by_place() && !builder.header(TraceHeader::kLayer)) return;
    const TraceWindow& window = request_->window;
    const std::int64_t layer_tokens = builder.header(TraceHeader::kNumTokens).value_or(request_->layer_tokens);
    if (layer_tokens != kUnknown) {
      selection_ = select_rows(window, layer_tokens);
    } else {
      selection_ = {.head_end = 0, .begin = window.first_token, .end = unwrapped_end()};
    }
    selected_ = true;
    builder.keep_rows(selection_);
  }

  [[nodiscard]] const RowSelection& selection() const noexcept { return selection_; }

  /// Whether the rows kept are those that the window covers, now that the layer is known whole.
  [[nodiscard]] bool complete(std::int64_t layer_tokens) const {
    if (!selected_) return false;
    return request_->window.first_token == 0 || selection_.end <= layer_tokens;
  }

 private:
  [[nodiscard]] bool wanted_by_place() const {
    return request_->layer == kFirstLayer || request_->object_idx != kUnknown;
  }

  [[nodiscard]] std::int64_t unwrapped_end() const {
    const TraceWindow& window = request_->window;
    return window.num_tokens > kAllTokens - window.first_token ? kAllTokens : window.first_token + window.num_tokens;
  }

  const ReadRequest* request_;
  LayerList* layers_;
  RowSelection selection_;
  bool selected_ = false;
};

FoundLayer scan(const std::string& path, const ReadRequest& request) {
  TraceStream source(path);
  LayerList layers;
  for (std::int64_t object_idx = 0; source.next_line(); ++object_idx) {
    if (object_idx < request.object_idx) continue;
    TraceLayerBuilder builder(source);
    RowPicker picker(request, layers);
    if (!parse_trace_line(source, builder, picker)) continue;
    FoundLayer found;
    found.layer.layer = static_cast<std::int32_t>(*builder.header(TraceHeader::kLayer));
    found.layer_tokens = *builder.header(TraceHeader::kNumTokens);
    found.object_idx = object_idx;
    found.selection = picker.selection();
    found.complete = picker.complete(found.layer_tokens);
    found.layer.table = builder.take_rows();
    return found;
  }
  if (request.layer == kFirstLayer) {
    throw Error(ErrorCode::kNotFound, fmt::format("the trace '{}' holds no layers", path));
  }
  throw Error(ErrorCode::kNotFound, fmt::format("layer {} is not in the trace '{}'; it holds these layers: {}",
                                                request.layer, path, layers.text()));
}

/// Reads the file once, or twice where the keys come in an order that says too late which rows are wanted.
FoundLayer read_rows(const std::string& path, std::int32_t layer, const TraceWindow& window) {
  if (layer < kFirstLayer) {
    reject(fmt::format("trace layer {}, expected {} (the first of the file) or a layer number", layer, kFirstLayer));
  }
  ReadRequest request{.layer = layer, .window = window, .object_idx = kUnknown, .layer_tokens = kUnknown};
  FoundLayer found = scan(path, request);
  if (found.complete) return found;
  request.object_idx = found.object_idx;
  request.layer_tokens = found.layer_tokens;
  return scan(path, request);
}

class SummaryObserver : public TraceLineObserver {
 public:
  [[nodiscard]] bool on_layer_number(std::int64_t /*layer*/) override { return true; }
  void before_columns(TraceLayerBuilder& /*builder*/) override {}
};

}  // namespace

TraceLayer read_trace_layer(const std::string& path, const TraceReadOptions& options) {
  if (options.max_tokens < kUnknown) {
    reject(fmt::format("max_tokens is {}, expected -1 (all) or a count", options.max_tokens));
  }
  const std::int64_t num_tokens = options.max_tokens == kUnknown ? kAllTokens : options.max_tokens;
  return read_rows(path, options.layer, {.first_token = 0, .num_tokens = num_tokens}).layer;
}

RoutingTable read_trace_window(const std::string& path, std::int32_t layer, const TraceWindow& window) {
  FoundLayer found = read_rows(path, layer, window);
  RoutingTable& kept = found.layer.table;
  if (kept.num_tokens == window.num_tokens && found.selection.head_end == 0 &&
      (window.num_tokens == 0 || found.selection.begin == window.first_token % found.layer_tokens)) {
    return std::move(kept);
  }
  if (found.layer_tokens == 0) {
    reject(fmt::format("layer {} of the trace '{}' has no tokens, expected at least 1", found.layer.layer, path));
  }

  const auto top_k = static_cast<std::size_t>(kept.top_k);
  const auto num_entries = static_cast<std::size_t>(window.num_tokens) * top_k;
  RoutingTable table{window.num_tokens, kept.num_experts, kept.top_k, {}, {}};
  table.expert_ids.reserve(num_entries);
  table.weights.reserve(num_entries);
  for (std::int64_t token = 0; token < window.num_tokens; ++token) {
    const std::int64_t row = (window.first_token + token) % found.layer_tokens;
    const RowSelection& selection = found.selection;
    const std::int64_t kept_row = row < selection.head_end ? row : row - selection.begin + selection.head_end;
    const auto entry = static_cast<std::ptrdiff_t>(static_cast<std::size_t>(kept_row) * top_k);
    table.expert_ids.insert(table.expert_ids.end(), kept.expert_ids.begin() + entry,
                            kept.expert_ids.begin() + entry + kept.top_k);
    table.weights.insert(table.weights.end(), kept.weights.begin() + entry, kept.weights.begin() + entry + kept.top_k);
  }
  return table;
}

void summarize_trace(const std::string& path, const std::function<void(const TraceLayerSummary&)>& on_layer,
                     const std::function<void(std::int64_t bytes_read, std::int64_t bytes_total)>& on_progress) {
  TraceStream source(path, on_progress);
  SummaryObserver observer;
  while (source.next_line()) {
    TraceLayerBuilder builder(source);
    // The observer takes interest in every line, so the result is always true.
    if (parse_trace_line(source, builder, observer)) on_layer(builder.take_summary());
  }
}

}  // namespace epistle
