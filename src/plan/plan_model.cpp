#include "plan/plan_model.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <initializer_list>
#include <optional>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "epistle/error.hpp"
#include "epistle/models.hpp"

#include "core/json_field.hpp"
#include "core/whole_file.hpp"

namespace epistle {
namespace {

using ConfigJson = nlohmann::ordered_json;

constexpr double kAssumedKvHeads = 8;
constexpr double kAssumedHeadWidth = 128;
constexpr double kAssumedVocabulary = 128 * 1024;
constexpr double kMaxSize = 1e7;  // of any width or count in a config

/// "1" is an expert of the usual width, "2816 wide" a width; "-" and "0" none.
double shared_width(std::string_view text, double expert_ffn) {
  double number = 0.0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc()) return text.find("ffn") != std::string_view::npos ? expert_ffn : 0.0;
  return text.find("wide") != std::string_view::npos ? number : number * expert_ffn;
}

/// Attention of presets, from the publishers' config.json files.
struct PresetAttention {
  std::string_view name;
  double heads;
  double kv_heads;
  double head_width;
  double vocabulary;
  double window_tokens = 0;  ///< of every second layer; 0 = all see everything
};

constexpr PresetAttention kPresetAttention[] = {
    {"qwen3-235b-a22b", 64, 4, 128, 151936},  {"qwen3-30b-a3b", 32, 4, 128, 151936},
    {"gpt-oss-120b", 64, 8, 64, 201088, 128}, {"gpt-oss-20b", 64, 8, 64, 201088, 128},
    {"mixtral-8x7b", 32, 8, 128, 32000},      {"mixtral-8x22b", 48, 8, 128, 32768},
    {"glm-4.5", 96, 8, 128, 151552},          {"glm-4.5-air", 96, 8, 128, 151552},
};

/// Sizes of multi-head latent attention: one latent and one rotary key per token for all heads.
struct LatentAttention {
  double heads;
  double query_latent;  ///< 0 = queries come from the hidden row itself
  double kv_latent;
  double key;  ///< of a head, without its rotary part
  double rotary;
  double value;
};

void set_attention(PlanModel& model, const LatentAttention& sizes) {
  const double key = sizes.key + sizes.rotary;
  const double query_elements = sizes.query_latent > 0
                                    ? model.hidden * sizes.query_latent + sizes.query_latent * sizes.heads * key
                                    : model.hidden * sizes.heads * key;
  model.kv_elements_per_token = sizes.kv_latent + sizes.rotary;
  model.kv_heads = 1;
  model.attention_elements = query_elements + model.hidden * (sizes.kv_latent + sizes.rotary) +
                             sizes.kv_latent * sizes.heads * (sizes.key + sizes.value) +
                             sizes.heads * sizes.value * model.hidden;
  model.score_elements = sizes.heads * (key + sizes.value);
  // In decode heads meet the latents as they are cached.
  model.decode_score_elements = sizes.heads * (2 * sizes.kv_latent + sizes.rotary);
}

void set_attention(PlanModel& model, double heads, double kv_heads, double head_width) {
  model.kv_elements_per_token = 2 * kv_heads * head_width;
  model.kv_heads = kv_heads;
  model.attention_elements = model.hidden * head_width * 2 * (heads + kv_heads);
  model.score_elements = 2 * heads * head_width;
  model.decode_score_elements = model.score_elements;
}

constexpr std::string_view kLatentPreset = "deepseek-v3";
constexpr LatentAttention kLatentSizes{
    .heads = 128, .query_latent = 1536, .kv_latent = 512, .key = 128, .rotary = 64, .value = 128};

void set_preset_attention(PlanModel& model) {
  if (model.name == kLatentPreset) {
    set_attention(model, kLatentSizes);
    model.vocabulary = 129280;
    return;
  }
  for (const PresetAttention& preset : kPresetAttention) {
    if (preset.name != model.name) continue;
    set_attention(model, preset.heads, preset.kv_heads, preset.head_width);
    model.vocabulary = preset.vocabulary;
    model.window_tokens = preset.window_tokens;
    if (preset.window_tokens > 0) model.num_window_layers = model.num_layers / 2;
    return;
  }
  model.vocabulary = kAssumedVocabulary;
  set_attention(model, model.hidden / kAssumedHeadWidth, kAssumedKvHeads, kAssumedHeadWidth);
  model.attention_is_assumed = true;
}

class ConfigReader {
 public:
  ConfigReader(const ConfigJson& config, std::string_view file) : config_(config), file_(file) {}

  PlanModel read() const {
    PlanModel model;
    model.name = config_.value("model_type", std::string(file_));
    model.hidden = need({"hidden_size"});
    model.routed_hidden = model.hidden;
    model.num_experts =
        static_cast<std::int32_t>(need({"n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts"}));
    model.top_k = static_cast<std::int32_t>(
        need({"num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_topk", "moe_k"}));
    if (model.top_k > model.num_experts) fail("num_experts_per_tok", "is larger than the number of experts");
    const double usual_ffn = find({"intermediate_size"}).value_or(0.0);
    model.dense_ffn = find({"intermediate_size_mlp"}).value_or(usual_ffn);
    model.expert_ffn = find({"moe_intermediate_size"}).value_or(usual_ffn);
    if (model.expert_ffn <= 0) fail("moe_intermediate_size", "is missing");
    model.num_layers = static_cast<std::int32_t>(need({"num_hidden_layers"}));
    model.num_moe_layers = count_moe_layers(model.num_layers);
    if (model.num_moe_layers < 1) fail("num_hidden_layers", "and the fields beside it leave no layer with experts");
    model.num_groups = static_cast<std::int32_t>(find({"n_group"}).value_or(1.0));
    model.groups_per_token = static_cast<std::int32_t>(find({"topk_group"}).value_or(1.0));
    model.shared_ffn =
        find({"shared_expert_intermediate_size"})
            .value_or(find({"n_shared_experts", "moe_num_shared_experts"}).value_or(0.0) * model.expert_ffn);
    model.vocabulary = find({"vocab_size"}).value_or(kAssumedVocabulary);
    model.tied_embeddings = config_.value("tie_word_embeddings", false);
    read_attention(model);
    read_windows(model);
    return model;
  }

 private:
  [[noreturn]] void fail(std::string_view field, std::string_view reason) const {
    throw Error(ErrorCode::kCorruptInput, fmt::format("{}: {} {}", file_, field, reason));
  }

  [[nodiscard]] std::optional<double> find(std::initializer_list<const char*> names) const {
    for (const char* const name : names) {
      const auto found = config_.find(name);
      if (found == config_.end() || found->is_null()) continue;
      if (!found->is_number()) fail(name, "must be a number");
      const double value = found->get<double>();
      if (value < 0 || value > kMaxSize) fail(name, fmt::format("is {}; it must be from 0 to {}", value, kMaxSize));
      return value;
    }
    return std::nullopt;
  }

  [[nodiscard]] double need(std::initializer_list<const char*> names) const {
    const auto value = find(names);
    if (!value || *value < 1) fail(*names.begin(), "is missing or 0; is it the config.json of a model with experts?");
    return *value;
  }

  void read_attention(PlanModel& model) const {
    const double heads = need({"num_attention_heads"});
    if (const auto latent = find({"kv_lora_rank"}); latent && *latent > 0) {
      set_attention(model, {.heads = heads,
                            .query_latent = find({"q_lora_rank"}).value_or(0.0),
                            .kv_latent = *latent,
                            .key = find({"qk_nope_head_dim"}).value_or(128.0),
                            .rotary = find({"qk_rope_head_dim"}).value_or(64.0),
                            .value = find({"v_head_dim"}).value_or(128.0)});
      return;
    }
    set_attention(model, heads, find({"num_key_value_heads"}).value_or(heads),
                  find({"head_dim"}).value_or(model.hidden / heads));
  }

  /// Layers with experts: all but those that one of the ways to say so leaves out.
  [[nodiscard]] std::int32_t count_moe_layers(std::int32_t num_layers) const {
    const double dense_first = find({"first_k_dense_replace"}).value_or(0.0);
    // Every n-th layer, the last of n (Qwen, Llama 4) or the first (DeepSeek).
    const double last_of = std::max(find({"decoder_sparse_step", "interleave_moe_layer_step"}).value_or(1.0), 1.0);
    const auto frequency = config_.find("moe_layer_freq");
    const bool is_list = frequency != config_.end() && frequency->is_array();
    const double first_of = is_list ? 1.0 : std::max(find({"moe_layer_freq"}).value_or(1.0), 1.0);
    const auto dense_layers = config_.find("mlp_only_layers");
    std::int32_t count = 0;
    for (std::int32_t layer = 0; layer < num_layers; ++layer) {
      bool dense = layer < dense_first || std::fmod(layer + 1, last_of) != 0 || std::fmod(layer, first_of) != 0;
      if (is_list && static_cast<std::size_t>(layer) < frequency->size()) {
        dense = dense || frequency->at(static_cast<std::size_t>(layer)).get<double>() == 0;
      }
      if (dense_layers != config_.end() && dense_layers->is_array()) {
        dense = dense || std::find(dense_layers->begin(), dense_layers->end(), layer) != dense_layers->end();
      }
      if (!dense) ++count;
    }
    return count;
  }

  /// Layers that see a window of the context, or keep a state of it.
  void read_windows(PlanModel& model) const {
    const double window = find({"sliding_window"}).value_or(0.0);
    const auto types = config_.find("layer_types");
    if (types != config_.end() && types->is_array()) {
      for (const ConfigJson& type : *types) {
        const std::string text = type.get<std::string>();
        if (text == "sliding_attention" && window > 0) ++model.num_window_layers;
        if (text == "linear_attention") ++model.num_linear_layers;
      }
      if (model.num_window_layers + model.num_linear_layers > model.num_layers) {
        fail("layer_types", "has more layers than num_hidden_layers");
      }
    } else if (window > 0 && config_.value("use_sliding_window", true)) {
      model.num_window_layers = model.num_layers;
    }
    model.window_tokens = window;
  }

  const ConfigJson& config_;
  std::string_view file_;
};

}  // namespace

double PlanModel::seen_tokens(double context_tokens) const noexcept {
  const double full_layers = num_layers - num_window_layers - num_linear_layers;
  return (full_layers * context_tokens + num_window_layers * std::min(window_tokens, context_tokens)) / num_layers;
}

PlanModel plan_model_of_preset(std::string_view name) {
  const ModelPreset& preset = find_model(name);
  PlanModel model;
  model.name = std::string(preset.name);
  model.hidden = static_cast<double>(preset.hidden);
  model.routed_hidden = model.hidden;
  model.expert_ffn = static_cast<double>(preset.expert_ffn);
  model.num_experts = preset.num_experts;
  model.top_k = preset.top_k;
  model.num_layers = preset.num_layers;
  model.num_moe_layers = preset.num_layers - preset.num_dense_first;
  // A published dense layer computes about as much as the experts of a token.
  model.dense_ffn = model.expert_ffn * (preset.top_k + 1);
  model.shared_ffn = shared_width(preset.shared, model.expert_ffn);
  model.num_groups = preset.num_groups;
  model.groups_per_token = preset.groups_per_token;
  set_preset_attention(model);
  return model;
}

PlanModel parse_plan_model(std::string_view text, std::string_view file) {
  const ConfigJson config = parse_json(text, std::string(file));
  if (!config.is_object()) {
    throw Error(ErrorCode::kCorruptInput, fmt::format("{} is not a JSON object; give a model's config.json", file));
  }
  // Models that also see or hear keep the language model in a part of its own.
  const auto part = config.find("text_config");
  try {
    return ConfigReader(part != config.end() && part->is_object() ? *part : config, file).read();
  } catch (const ConfigJson::exception& error) {
    throw Error(ErrorCode::kCorruptInput, fmt::format("{}: {}", file, error.what()));
  }
}

PlanModel read_plan_model(const std::string& name_or_file) {
  if (!name_or_file.ends_with(".json")) return plan_model_of_preset(name_or_file);
  return parse_plan_model(read_whole_file(name_or_file), name_or_file);
}

}  // namespace epistle
