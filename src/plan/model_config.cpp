#include "plan/model_config.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/ascii.hpp"
#include "plan/config_fields.hpp"
#include "plan/layer_kinds.hpp"

namespace epistle {
namespace {

constexpr double kAssumedVocabulary = 128 * 1024;

/// Nothing where plans have no curve for it.
std::optional<ExpertType> stored_precision(const ConfigFields& stored) {
  const std::string method = stored.text("quant_method");
  const std::string kind = to_lower(stored.text("quant_algo") + stored.text("format"));  // modelopt; compressed-tensors
  if (method == "mxfp4" || kind.find("fp4") != std::string::npos) return ExpertType::kFp4;
  if (method == "fp8") return stored.numbers("weight_block_size") ? ExpertType::kFp8Block : ExpertType::kFp8;
  if (kind == "fp8" || kind == "float-quantized") return ExpertType::kFp8;
  return std::nullopt;
}

class ModelConfig {
 public:
  ModelConfig(const ConfigFields& config, const std::string& file) : config_(config), file_(file) {}

  PlanModel read() {
    const std::string type = config_.text("model_type");
    model_.name = type.empty() ? file_ : type;
    model_.hidden = config_.need({"hidden_size", "d_model"});
    const auto latent = config_.number({"moe_latent_size", "routed_expert_hidden_size"});
    model_.routed_hidden = latent && *latent > 0 ? *latent : model_.hidden;
    read_experts();
    read_layers();
    read_shared_experts();
    model_.vocabulary = config_.number({"vocab_size"}).value_or(kAssumedVocabulary);
    model_.tied_embeddings = config_.flag("tie_word_embeddings", false);
    if (const auto stored = config_.part("quantization_config")) model_.stored_precision = stored_precision(*stored);
    return std::move(model_);
  }

 private:
  void read_experts() {
    const ConfigFields part = config_.part("ffn_config").value_or(config_);  // DBRX
    model_.num_experts = static_cast<std::int32_t>(
        part.need({"n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts"}));
    model_.top_k = static_cast<std::int32_t>(
        part.need({"num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_topk", "moe_top_k",
                   "moe_k", "top_k_experts", "num_selected_experts"}));
    if (model_.top_k > model_.num_experts) {
      config_.fail("num_experts_per_tok", "is larger than the number of experts");
    }
    const double usual_ffn = part.number({"intermediate_size", "ffn_hidden_size"}).value_or(0.0);
    model_.dense_ffn = config_.number({"dense_intermediate_size", "intermediate_size_mlp"}).value_or(usual_ffn);
    model_.expert_ffn = part.number({"moe_intermediate_size", "expert_ffn_hidden_size"}).value_or(usual_ffn);
    if (model_.expert_ffn <= 0) config_.fail("moe_intermediate_size", "is missing");
    // Squared ReLU has no gate: two matrices instead of three.
    if (config_.text("mlp_hidden_act") == "relu2") model_.expert_matrices = 2;
    model_.num_groups = static_cast<std::int32_t>(config_.number({"n_group", "num_expert_group"}).value_or(1.0));
    model_.groups_per_token = static_cast<std::int32_t>(config_.number({"topk_group"}).value_or(1.0));
  }

  void read_layers() {
    const std::vector<LayerKind> kinds = read_layer_kinds(config_);
    model_.num_layers = static_cast<std::int32_t>(kinds.size());
    double num_dense = 0;
    for (std::size_t layer = 0; layer < kinds.size(); ++layer) {
      if (kinds[layer].body == LayerBody::kExperts) ++model_.num_moe_layers;
      if (kinds[layer].body == LayerBody::kDense) ++num_dense;
      if (kinds[layer].attention != AttentionKind::kNone) add_attention(attention_of(kinds[layer].attention, layer));
    }
    if (model_.num_moe_layers < 1) {
      config_.fail("num_hidden_layers", "and the fields beside it leave no layer with experts");
    }
    // Layers of hybrids may have neither: on average the others are so wide.
    const double num_others = model_.num_layers - model_.num_moe_layers;
    if (num_others > 0) model_.dense_ffn *= num_dense / num_others;
  }

  void add_attention(AttentionLayers layers) {
    layers.num_layers = 1;
    const auto found = std::find_if(model_.attention.begin(), model_.attention.end(),
                                    [&](const AttentionLayers& other) { return other.is_like(layers); });
    if (found == model_.attention.end()) {
      model_.attention.push_back(layers);
    } else {
      ++found->num_layers;
    }
  }

  void read_shared_experts() {
    const double count =
        config_.number({"n_shared_experts", "moe_num_shared_experts", "num_shared_experts", "num_shared_expert"})
            .value_or(0.0);
    const auto own_width = config_.number({"shared_expert_intermediate_size", "moe_shared_expert_intermediate_size",
                                           "share_expert_dim", "shared_intermediate_size"});
    model_.shared_ffn = own_width ? *own_width * std::max(count, 1.0) : count * model_.expert_ffn;
    // One beside the experts that the config does not name; and dense layers that run beside them.
    if (config_.is_of("llama4")) model_.shared_ffn = model_.expert_ffn;
    if (config_.flag("enable_moe_block", false) || config_.flag("residual_moe", false) ||
        config_.flag("parallel_attn_mlp_res", false)) {
      model_.shared_ffn += config_.number({"intermediate_size"}).value_or(0.0);
    }
  }

  [[nodiscard]] AttentionLayers attention_of(AttentionKind kind, std::size_t layer) const {
    if (kind == AttentionKind::kState) return state_layer();
    const bool window = kind == AttentionKind::kWindow;
    const double heads = config_.need({"num_attention_heads", "n_heads"});
    const auto latent = config_.number({"kv_lora_rank"});
    AttentionLayers layers;
    if (latent && *latent > 0) {
      layers = latent_attention(model_.hidden, {.heads = heads,
                                                .query_latent = config_.number({"q_lora_rank"}).value_or(0.0),
                                                .kv_latent = *latent,
                                                .key = config_.number({"qk_nope_head_dim"}).value_or(128.0),
                                                .rotary = config_.number({"qk_rope_head_dim"}).value_or(64.0),
                                                .value = config_.number({"v_head_dim"}).value_or(128.0)});
    } else if (const auto ratios = config_.numbers("compress_ratios")) {
      return compressed_layer(heads, layer < ratios->size() ? (*ratios)[layer] : 0.0);
    } else {
      layers = grouped_attention(model_.hidden, grouped_sizes(heads, window));
    }
    if (window) layers.window_tokens = window_tokens(config_);
    add_index(layers, layer);
    return layers;
  }

  [[nodiscard]] GroupedSizes grouped_sizes(double heads, bool window) const {
    const ConfigFields part = config_.part("attn_config").value_or(config_);  // DBRX
    const double kv_heads = part.number({"num_key_value_heads", "num_attention_groups", "kv_n_heads"}).value_or(heads);
    const double key = config_.number({"head_dim"}).value_or(model_.hidden / heads);
    GroupedSizes sizes{.heads = heads,
                       .kv_heads = kv_heads,
                       .key = key,
                       .value = config_.number({"v_head_dim"}).value_or(key),
                       .gated = config_.flag("attn_output_gate", config_.is_of("qwen3_next"))};
    if (window) {  // where these differ from the others
      sizes.heads = config_.number({"swa_num_attention_heads"}).value_or(heads);
      sizes.kv_heads = config_.number({"swa_num_key_value_heads"}).value_or(kv_heads);
      sizes.key = config_.number({"swa_head_dim"}).value_or(key);
      sizes.value = config_.number({"swa_v_head_dim"}).value_or(sizes.value);
    } else if (const auto wide = config_.number({"global_head_dim"}); wide && *wide > 0) {
      sizes.key = sizes.value = *wide;
      sizes.kv_heads = config_.number({"num_global_key_value_heads"}).value_or(kv_heads);
    }
    return sizes;
  }

  /// Of tokens beyond a window only a summary of every `ratio` is kept (DeepSeek-V4); one row serves as key and value.
  [[nodiscard]] AttentionLayers compressed_layer(double heads, double ratio) const {
    const double width = config_.need({"head_dim"});
    const double query_latent = config_.need({"q_lora_rank"});
    const double output_latent = config_.need({"o_lora_rank"});
    const double output_groups = config_.number({"o_groups"}).value_or(1.0);
    AttentionLayers layers{.weight_elements = model_.hidden * (query_latent + width) + query_latent * heads * width +
                                              output_latent * (heads * width + output_groups * model_.hidden),
                           .cached_elements_per_token = width,
                           .score_elements = 2 * heads * width,
                           .decode_score_elements = 2 * heads * width,
                           .window_tokens = config_.need({"sliding_window"}),
                           .tokens_per_summary = ratio};
    // The finer summaries are chosen from by an index; the coarser ones are few enough to be read.
    constexpr double kFewSummaries = 16;
    if (ratio > 0 && ratio < kFewSummaries) {
      add_index(layers, 0);
      layers.chosen_tokens += layers.window_tokens;
    }
    return layers;
  }

  /// Sparse attention reads what an index chooses; the index sees all.
  void add_index(AttentionLayers& layers, std::size_t layer) const {
    constexpr double kFp8OfBf16 = 0.5;
    if (const auto chosen = config_.number({"index_topk"}); chosen && *chosen > 0) {
      const double heads = config_.number({"index_n_heads"}).value_or(1.0);
      const double width = config_.number({"index_head_dim"}).value_or(128.0);
      layers.chosen_tokens = *chosen;
      layers.index_elements = kFp8OfBf16 * width;
      layers.index_score_elements = heads * width;
      layers.weight_elements +=
          config_.number({"q_lora_rank"}).value_or(model_.hidden) * heads * width + model_.hidden * (width + heads);
    }
    const auto blocks = config_.part("sparse_attention_config");  // MiniMax-M3
    if (!blocks || !blocks->flag("use_sparse_attention", true)) return;
    const auto layers_with = blocks->numbers("sparse_attention_freq");
    if (layers_with && layer < layers_with->size() && (*layers_with)[layer] == 0) return;
    const double width = blocks->number({"sparse_index_dim"}).value_or(128.0);
    const double heads = blocks->number({"sparse_num_index_heads"}).value_or(1.0);
    layers.chosen_tokens = blocks->need({"sparse_block_size"}) * blocks->need({"sparse_topk_blocks"});
    layers.index_elements = width;
    layers.index_score_elements = heads * width;
    layers.weight_elements += model_.hidden * (heads + 1) * width;
  }

  [[nodiscard]] AttentionLayers state_layer() const {
    const double hidden = model_.hidden;
    if (const auto heads = config_.number({"linear_num_value_heads"})) {  // gated delta rule: Qwen
      const double key = config_.need({"linear_key_head_dim"});
      const double value = config_.need({"linear_value_head_dim"});
      return state_attention(hidden, {.key_elements = config_.need({"linear_num_key_heads"}) * key,
                                      .value_elements = *heads * value,
                                      .gate_elements = *heads * value,
                                      .state_elements = *heads * key * value});
    }
    if (const auto linear = config_.part("linear_attn_config")) {  // Kimi
      const double width = linear->need({"head_dim"});
      const double all = linear->need({"num_heads"}) * width;
      return state_attention(
          hidden, {.key_elements = all, .value_elements = all, .gate_elements = all, .state_elements = all * width});
    }
    if (const auto conv = config_.number({"conv_L_cache"})) {  // short convolutions: LFM2
      return state_attention(hidden,
                             {.value_elements = hidden, .gate_elements = 2 * hidden, .state_elements = hidden * *conv});
    }
    if (const auto state = config_.number({"ssm_state_size", "mamba_d_state"})) return mamba_layer(*state);
    const double heads = config_.need({"num_attention_heads"});  // linear attention of the model's own heads: MiniMax
    const double width = config_.number({"head_dim"}).value_or(hidden / heads);
    return state_attention(hidden, {.key_elements = heads * width,
                                    .value_elements = heads * width,
                                    .gate_elements = heads * width,
                                    .state_elements = heads * width * width});
  }

  [[nodiscard]] AttentionLayers mamba_layer(double state) const {
    const auto heads = config_.number({"mamba_num_heads", "mamba_n_heads"});
    const auto width = config_.number({"mamba_head_dim", "mamba_d_head"});
    const double inner =
        heads && width ? *heads * *width : config_.number({"mamba_expand", "expand"}).value_or(2.0) * model_.hidden;
    const double groups = config_.number({"n_groups", "mamba_n_groups"}).value_or(1.0);
    return state_attention(model_.hidden, {.key_elements = groups * state,
                                           .value_elements = inner,
                                           .gate_elements = inner + heads.value_or(0.0),
                                           .state_elements = inner * state});
  }

  const ConfigFields& config_;
  const std::string& file_;
  PlanModel model_;
};

}  // namespace

PlanModel parse_plan_model(std::string_view text, const std::string& file) {
  const JsonField::Json document = parse_json(without_infinities(text), file);
  const JsonField root(document, file);
  if (!document.is_object()) root.fail("is not an object; give a model's config.json");
  ConfigFields config(root);
  // Models that also see or hear keep the language model in a part of its own.
  const auto part = config.part("text_config");
  const std::optional<ConfigFields> stored = config.part("quantization_config");
  if (part) config = *part;
  PlanModel model = ModelConfig(config, file).read();
  if (!model.stored_precision && stored) model.stored_precision = stored_precision(*stored);
  return model;
}

}  // namespace epistle
