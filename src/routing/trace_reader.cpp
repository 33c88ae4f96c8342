#include "routing/trace_reader.hpp"

#include <algorithm>
#include <cstddef>
#include <limits>
#include <new>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "epistle/error.hpp"
#include "epistle/trace.hpp"

#include "core/reject.hpp"
#include "routing/trace_layer_builder.hpp"
#include "routing/trace_layers.hpp"
#include "routing/trace_sax.hpp"
#include "routing/trace_stream.hpp"

namespace epistle {
namespace {

constexpr std::int32_t kFirstLayer = -1;
constexpr std::int64_t kUnknown = -1;
constexpr std::int64_t kAllTokens = std::numeric_limits<std::int64_t>::max();

/// The rows that a window covers in a layer of `layer_tokens` tokens.
RowSelection select_rows(const TraceWindow& window, std::int64_t layer_tokens) {
  if (window.num_tokens >= layer_tokens) return {.head_end = 0, .begin = 0, .end = layer_tokens};
  const std::int64_t begin = window.first_token % layer_tokens;
  const std::int64_t tokens_to_end = layer_tokens - begin;
  if (window.num_tokens <= tokens_to_end) return {.head_end = 0, .begin = begin, .end = begin + window.num_tokens};
  return {.head_end = window.num_tokens - tokens_to_end, .begin = begin, .end = layer_tokens};
}

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
  /// `is_found`: the layer wanted was in a line before this one.
  RowPicker(const ReadRequest& request, TraceLayers& layers, bool is_found)
      : request_(&request), layers_(&layers), is_found_(is_found) {}

  [[nodiscard]] bool on_layer_number(std::int64_t layer) override {
    layers_->add(layer);
    return !is_found_ && (wanted_by_place() || layer == request_->layer);
  }

  void before_columns(TraceLayerBuilder& builder) override {
    if (is_found_) return;
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
  TraceLayers* layers_;
  bool is_found_;
  RowSelection selection_;
  bool selected_ = false;
};

/// Reads to the end of the file, so that damage behind the layer and a second record of it are found, unless the
/// layer's place says that this was done before.
FoundLayer scan(const std::string& path, const ReadRequest& request) {
  TraceStream source(path);
  TraceLayers layers(source);
  std::optional<FoundLayer> found;
  for (std::int64_t object_idx = 0; source.next_line(); ++object_idx) {
    if (object_idx < request.object_idx) continue;
    TraceLayerBuilder builder(source);
    RowPicker picker(request, layers, found.has_value());
    if (!parse_trace_line(source, builder, picker)) continue;
    found.emplace();
    found->layer.layer = static_cast<std::int32_t>(*builder.header(TraceHeader::kLayer));
    found->layer_tokens = *builder.header(TraceHeader::kNumTokens);
    found->object_idx = object_idx;
    found->selection = picker.selection();
    found->complete = picker.complete(found->layer_tokens);
    found->layer.table = builder.take_rows();
    if (request.object_idx != kUnknown) break;
  }
  if (found) return *std::move(found);
  layers.require_some();
  throw Error(ErrorCode::kNotFound, fmt::format("layer {} is not in the trace '{}'; it holds these layers: {}",
                                                request.layer, path, layers.text()));
}

/// Reads the file once, or twice where the keys come in an order that says too late which rows are wanted.
FoundLayer read_rows(const std::string& path, std::int32_t layer, const TraceWindow& window) {
  if (layer < kFirstLayer) {
    reject(fmt::format("trace layer {}, expected {} (the first of the file) or a layer number", layer, kFirstLayer));
  }
  ReadRequest request{.layer = layer, .window = window, .object_idx = kUnknown, .layer_tokens = kUnknown};
  try {
    FoundLayer found = scan(path, request);
    if (found.complete) return found;
    request.object_idx = found.object_idx;
    request.layer_tokens = found.layer_tokens;
    return scan(path, request);
  } catch (const std::bad_alloc&) {
    throw Error(ErrorCode::kOutOfMemory,
                fmt::format("the tokens wanted of the trace '{}' do not fit into memory; read fewer of them", path));
  }
}

class SummaryObserver : public TraceLineObserver {
 public:
  explicit SummaryObserver(TraceLayers& layers) : layers_(&layers) {}

  [[nodiscard]] bool on_layer_number(std::int64_t layer) override {
    layers_->add(layer);
    return true;
  }
  void before_columns(TraceLayerBuilder& /*builder*/) override {}

 private:
  TraceLayers* layers_;
};

/// Wants every row of every line.
class WholeObserver : public TraceLineObserver {
 public:
  explicit WholeObserver(TraceLayers& layers) : layers_(&layers) {}

  [[nodiscard]] bool on_layer_number(std::int64_t layer) override {
    layers_->add(layer);
    return true;
  }
  void before_columns(TraceLayerBuilder& builder) override {
    builder.keep_rows({.head_end = 0, .begin = 0, .end = kAllTokens});
  }

 private:
  TraceLayers* layers_;
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
  TraceLayers layers(source);
  SummaryObserver observer(layers);
  while (source.next_line()) {
    TraceLayerBuilder builder(source);
    // The observer takes interest in every line, so the result is always true.
    if (parse_trace_line(source, builder, observer)) on_layer(builder.take_summary());
  }
  layers.require_some();
}

void read_trace_layers(const std::string& path, const std::function<void(TraceLayer&&)>& on_layer,
                       const std::function<void(std::int64_t bytes_read, std::int64_t bytes_total)>& on_progress) {
  TraceStream source(path, on_progress);
  TraceLayers layers(source);
  WholeObserver observer(layers);
  while (source.next_line()) {
    TraceLayerBuilder builder(source);
    // The observer takes interest in every line, so the result is always true.
    if (!parse_trace_line(source, builder, observer)) continue;
    TraceLayer layer;
    layer.layer = static_cast<std::int32_t>(*builder.header(TraceHeader::kLayer));
    layer.table = builder.take_rows();
    on_layer(std::move(layer));
  }
  layers.require_some();
}

}  // namespace epistle
