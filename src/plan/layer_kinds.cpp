#include "plan/layer_kinds.hpp"

#include <algorithm>
#include <cmath>

namespace epistle {
namespace {

bool contains(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

bool holds(const std::vector<double>& values, std::size_t layer) {
  return std::find(values.begin(), values.end(), static_cast<double>(layer)) != values.end();
}

/// One rule after the other takes experts, or full attention, from layers.
class KindReader {
 public:
  explicit KindReader(const ConfigFields& config) : config_(config) {}

  std::vector<LayerKind> read() {
    if (read_blocks()) return std::move(kinds_);
    kinds_.resize(static_cast<std::size_t>(config_.need({"num_hidden_layers", "num_layers", "n_layers"})));
    read_dense_ranges();
    read_dense_steps();
    read_dense_lists();
    read_attention();
    return std::move(kinds_);
  }

 private:
  template <typename IsDense>
  void make_dense(const IsDense& is_dense) {
    for (std::size_t layer = 0; layer < kinds_.size(); ++layer) {
      if (is_dense(layer)) kinds_[layer].body = LayerBody::kDense;
    }
  }

  template <typename Is>
  void make(AttentionKind kind, const Is& is_kind) {
    for (std::size_t layer = 0; layer < kinds_.size(); ++layer) {
      if (is_kind(layer)) kinds_[layer].attention = kind;
    }
  }

  void read_dense_ranges() {
    const double first =
        config_.number({"first_k_dense_replace", "num_dense_layers", "moe_layer_num_skipped", "moe_layer_start_index"})
            .value_or(0.0);
    make_dense([&](std::size_t layer) { return static_cast<double>(layer) < first; });
    if (const auto last = config_.number({"moe_layer_end_index"})) {
      make_dense([&](std::size_t layer) { return static_cast<double>(layer) > *last; });
    }
  }

  void read_dense_steps() {
    const auto is_off = [](std::size_t place, double period) {
      return period > 1 && std::fmod(static_cast<double>(place), period) != 0;
    };
    // Every n-th layer, the last of n (Qwen, Llama 4, ERNIE, Arctic) ...
    const double last_of =
        config_
            .number({"decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_interval", "moe_layer_frequency"})
            .value_or(1.0);
    make_dense([&](std::size_t layer) { return is_off(layer + 1, last_of); });
    // ... the first (DeepSeek), or one between (Jamba).
    if (!config_.numbers("moe_layer_freq")) {
      const double first_of = config_.number({"moe_layer_freq"}).value_or(1.0);
      make_dense([&](std::size_t layer) { return is_off(layer, first_of); });
    }
    const double period = config_.number({"expert_layer_period"}).value_or(1.0);
    const double offset = config_.number({"expert_layer_offset"}).value_or(0.0);
    make_dense([&](std::size_t layer) {
      return period > 1 && std::fmod(static_cast<double>(layer), period) != std::fmod(offset, period);
    });
  }

  void read_dense_lists() {
    for (const char* const name : {"moe_layer_freq", "is_moe_layer"}) {  // a value for every layer
      if (const auto flags = config_.numbers(name)) {
        make_dense([&](std::size_t layer) { return layer < flags->size() && (*flags)[layer] == 0; });
      }
    }
    for (const char* const name : {"moe_layers", "moe_layers_enum"}) {  // those with experts
      if (const auto layers = config_.numbers(name); layers && !layers->empty()) {
        make_dense([&](std::size_t layer) { return !holds(*layers, layer); });
      }
    }
    if (const auto layers = config_.numbers("mlp_only_layers")) {
      make_dense([&](std::size_t layer) { return holds(*layers, layer); });
    }
    if (const auto types = config_.texts("mlp_layer_types")) {
      make_dense([&](std::size_t layer) { return layer < types->size() && (*types)[layer] == "dense"; });
    }
  }

  void read_attention() {
    const double window = window_tokens(config_);
    if (const auto types = config_.texts("layer_types")) {
      if (types->size() > kinds_.size()) config_.fail("layer_types", "has more layers than num_hidden_layers");
      for (std::size_t layer = 0; layer < types->size(); ++layer) set_named((*types)[layer], window, kinds_[layer]);
      return;
    }
    if (read_states()) return;
    if (window > 0) read_windows();
  }

  static void set_named(const std::string& type, double window, LayerKind& kind) {
    const bool is_window = contains(type, "sliding") || contains(type, "chunked");
    if (is_window && window > 0) kind.attention = AttentionKind::kWindow;
    for (const char* const state : {"linear", "mamba", "conv", "recurrent", "lightning"}) {
      if (contains(type, state)) kind.attention = AttentionKind::kState;
    }
  }

  /// Layers that keep a state, said otherwise than by layer_types.
  bool read_states() {
    const double interval = config_.number({"full_attention_interval"}).value_or(0.0);
    const double period = config_.number({"attn_layer_period"}).value_or(0.0);
    const double offset = config_.number({"attn_layer_offset"}).value_or(0.0);
    const auto linear = config_.part("linear_attn_config");
    const auto full = linear ? linear->numbers("full_attn_layers") : std::nullopt;
    const auto types = config_.numbers("attn_type_list");
    make(AttentionKind::kState, [&](std::size_t layer) {
      const auto place = static_cast<double>(layer);
      return (interval > 1 && std::fmod(place + 1, interval) != 0) ||
             (period > 1 && std::fmod(place, period) != std::fmod(offset, period)) ||
             (full && !holds(*full, layer + 1)) || (types && layer < types->size() && (*types)[layer] == 0);
    });
    return interval > 1 || period > 1 || full || types;
  }

  void read_windows() {
    if (const auto pattern = config_.numbers("hybrid_layer_pattern")) {  // 1 = a window
      make(AttentionKind::kWindow,
           [&](std::size_t layer) { return layer < pattern->size() && (*pattern)[layer] != 0; });
    } else if (const std::string letters = config_.text("sliding_window_pattern"); !letters.empty()) {  // "LLLG"
      make(AttentionKind::kWindow, [&](std::size_t layer) { return letters[layer % letters.size()] == 'L'; });
    } else if (const auto rotary = config_.numbers("no_rope_layers"); rotary && !rotary->empty()) {
      make(AttentionKind::kWindow, [&](std::size_t layer) { return layer < rotary->size() && (*rotary)[layer] != 0; });
    } else {
      // Llama 4 sees all in every fourth layer, and its config need not say so.
      const double usual = config_.is_of("llama4") ? 4 : 0;
      const double full_every =
          config_.number({"sliding_window_pattern", "global_attn_every_n_layers"}).value_or(usual);
      const double first =
          config_.flag("use_sliding_window", false) ? config_.number({"max_window_layers"}).value_or(0.0) : 0.0;
      make(AttentionKind::kWindow, [&](std::size_t layer) {
        const auto place = static_cast<double>(layer);
        return place >= first && (full_every < 1 || std::fmod(place + 1, full_every) != 0);
      });
    }
  }

  /// Blocks of a hybrid: each is attention, a state, experts or dense. False where the config has none.
  bool read_blocks() {
    std::vector<std::string> blocks;
    if (const auto types = config_.texts("layers_block_type")) blocks = *types;
    for (const char letter : config_.text("hybrid_override_pattern")) blocks.emplace_back(1, letter);
    for (const std::string& block : blocks) {
      if (block == "M" || block == "mamba") {
        kinds_.push_back({.attention = AttentionKind::kState, .body = LayerBody::kNone});
      } else if (block == "*" || block == "attention") {
        kinds_.push_back({.attention = AttentionKind::kFull, .body = LayerBody::kNone});
      } else if (block == "E" || block == "moe" || block == "-" || block == "mlp") {
        if (kinds_.empty() || kinds_.back().body != LayerBody::kNone) {
          kinds_.push_back({.attention = AttentionKind::kNone, .body = LayerBody::kNone});
        }
        kinds_.back().body = block == "E" || block == "moe" ? LayerBody::kExperts : LayerBody::kDense;
      } else {
        config_.fail(config_.texts("layers_block_type") ? "layers_block_type" : "hybrid_override_pattern",
                     "has blocks other than of mamba (M), attention (*), experts (E) and dense layers (-)");
      }
    }
    return !blocks.empty();
  }

  const ConfigFields& config_;
  std::vector<LayerKind> kinds_;
};

}  // namespace

double window_tokens(const ConfigFields& config) {
  if (!config.flag("use_sliding_window", true)) return 0.0;
  if (config.is_of("llama4")) return config.number({"attention_chunk_size"}).value_or(0.0);
  return config.number({"sliding_window", "sliding_window_size"}).value_or(0.0);
}

std::vector<LayerKind> read_layer_kinds(const ConfigFields& config) { return KindReader(config).read(); }

}  // namespace epistle
