// The model that a plan is for: sizes that decide its times and its memory.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace epistle {

struct PlanModel {
  std::string name;
  double hidden = 0;         ///< of the residual stream and of attention
  double routed_hidden = 0;  ///< of a routed row; less than `hidden` where a model routes a latent
  double expert_ffn = 0;
  double dense_ffn = 0;   ///< of layers without experts
  double shared_ffn = 0;  ///< of all shared experts together; 0 = none
  std::int32_t num_experts = 0;
  std::int32_t top_k = 0;
  std::int32_t num_layers = 0;
  std::int32_t num_moe_layers = 0;
  std::int32_t num_groups = 1;  ///< expert groups of the router
  std::int32_t groups_per_token = 1;
  double vocabulary = 0;
  bool tied_embeddings = false;        ///< one matrix for tokens in and out
  double attention_elements = 0;       ///< weights of the attention of a layer
  double kv_elements_per_token = 0;    ///< cached per token and layer that caches
  double kv_heads = 1;                 ///< parts that a cache can be split into: latents of all heads are one
  double score_elements = 0;           ///< of queries and values of all heads: two operations for each token seen
  double decode_score_elements = 0;    ///< the same in decode; more where heads work on latents
  std::int32_t num_window_layers = 0;  ///< whose attention sees the last `window_tokens` only
  double window_tokens = 0;
  std::int32_t num_linear_layers = 0;  ///< whose attention keeps a state instead of a cache
  bool attention_is_assumed = false;   ///< a preset does not say: grouped-query attention of eight heads of 128

  /// Of a context, tokens that the attention of a layer sees and caches, on average over the layers.
  [[nodiscard]] double seen_tokens(double context_tokens) const noexcept;
};

/// A name of epistle models.
[[nodiscard]] PlanModel plan_model_of_preset(std::string_view name);

/// A Hugging Face config.json. `file` is named in errors, which are kCorruptInput and name the field.
[[nodiscard]] PlanModel parse_plan_model(std::string_view text, std::string_view file);

/// A preset, or a file where the name ends in .json.
[[nodiscard]] PlanModel read_plan_model(const std::string& name_or_file);

}  // namespace epistle
