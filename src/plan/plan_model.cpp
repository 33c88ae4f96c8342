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

#include "core/whole_file.hpp"

namespace epistle {
namespace {

using ConfigJson = nlohmann::json;

constexpr double kAssumedKvElements = 2 * 8 * 128;  // keys and values, eight heads of 128
constexpr double kAssumedVocabulary = 128 * 1024;
constexpr double kMaxSize = 1e7;  // of any width or count in a config

/// Weights of queries and output (hidden x hidden each) and of keys and values.
double usual_attention(double hidden, double kv_elements) { return 2 * hidden * hidden + hidden * kv_elements; }

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
};

constexpr PresetAttention kPresetAttention[] = {
    {"qwen3-235b-a22b", 64, 4, 128, 151936}, {"qwen3-30b-a3b", 32, 4, 128, 151936},
    {"gpt-oss-120b", 64, 8, 64, 201088},     {"gpt-oss-20b", 64, 8, 64, 201088},
    {"mixtral-8x7b", 32, 8, 128, 32000},     {"mixtral-8x22b", 48, 8, 128, 32768},
    {"glm-4.5", 96, 8, 128, 151552},         {"glm-4.5-air", 96, 8, 128, 151552},
};

/// DeepSeek-V3: multi-head latent attention of 128 heads; a latent of 512 and a rotary key of 64 are cached.
constexpr std::string_view kLatentPreset = "deepseek-v3";
constexpr double kLatentKvElements = 512 + 64;
constexpr double kLatentAttentionElements =
    7168.0 * 1536 + 1536.0 * 128 * 192 + 7168.0 * 576 + 512.0 * 128 * 256 + 128.0 * 128 * 7168;

void set_preset_attention(PlanModel& model) {
  if (model.name == kLatentPreset) {
    model.kv_elements_per_token = kLatentKvElements;
    model.attention_elements = kLatentAttentionElements;
    model.vocabulary = 129280;
    return;
  }
  for (const PresetAttention& preset : kPresetAttention) {
    if (preset.name != model.name) continue;
    model.kv_elements_per_token = 2 * preset.kv_heads * preset.head_width;
    model.attention_elements = model.hidden * preset.head_width * 2 * (preset.heads + preset.kv_heads);
    model.vocabulary = preset.vocabulary;
    return;
  }
  model.vocabulary = kAssumedVocabulary;
  model.kv_elements_per_token = kAssumedKvElements;
  model.attention_elements = usual_attention(model.hidden, kAssumedKvElements);
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
    model.num_experts = static_cast<std::int32_t>(need({"n_routed_experts", "num_experts", "num_local_experts"}));
    model.top_k = static_cast<std::int32_t>(need({"num_experts_per_tok", "num_experts_per_token", "moe_topk"}));
    if (model.top_k > model.num_experts) fail("num_experts_per_tok", "is larger than the number of experts");
    model.dense_ffn = find({"intermediate_size"}).value_or(0.0);
    model.expert_ffn = find({"moe_intermediate_size"}).value_or(model.dense_ffn);
    if (model.expert_ffn <= 0) fail("moe_intermediate_size", "is missing");
    model.num_layers = static_cast<std::int32_t>(need({"num_hidden_layers"}));
    const double dense_first = find({"first_k_dense_replace"}).value_or(0.0);
    if (dense_first >= model.num_layers) fail("first_k_dense_replace", "leaves no layer with experts");
    model.num_moe_layers = model.num_layers - static_cast<std::int32_t>(dense_first);
    model.num_groups = static_cast<std::int32_t>(find({"n_group"}).value_or(1.0));
    model.groups_per_token = static_cast<std::int32_t>(find({"topk_group"}).value_or(1.0));
    model.shared_ffn =
        find({"shared_expert_intermediate_size"}).value_or(find({"n_shared_experts"}).value_or(0.0) * model.expert_ffn);
    model.vocabulary = find({"vocab_size"}).value_or(kAssumedVocabulary);
    read_attention(model);
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
    if (const auto latent = find({"kv_lora_rank"}); latent && *latent > 0) {
      // Multi-head latent attention: one latent and one rotary key per token.
      const double rotary = find({"qk_rope_head_dim"}).value_or(64.0);
      const double heads = need({"num_attention_heads"});
      const double key = find({"qk_nope_head_dim"}).value_or(128.0);
      const double value = find({"v_head_dim"}).value_or(128.0);
      const double query = find({"q_lora_rank"}).value_or(0.0);
      model.kv_elements_per_token = *latent + rotary;
      const double query_elements =
          query > 0 ? model.hidden * query + query * heads * (key + rotary) : model.hidden * heads * (key + rotary);
      model.attention_elements = query_elements + model.hidden * (*latent + rotary) + *latent * heads * (key + value) +
                                 heads * value * model.hidden;
      return;
    }
    const double heads = need({"num_attention_heads"});
    const double kv_heads = find({"num_key_value_heads"}).value_or(heads);
    const double width = find({"head_dim"}).value_or(model.hidden / heads);
    model.kv_elements_per_token = 2 * kv_heads * width;
    model.attention_elements = model.hidden * width * (2 * heads + 2 * kv_heads);
  }

  const ConfigJson& config_;
  std::string_view file_;
};

}  // namespace

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
  const ConfigJson config = ConfigJson::parse(text.begin(), text.end(), nullptr, false);
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
