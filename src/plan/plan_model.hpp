// The model that a plan is for: sizes that decide its times and its memory.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cost/work.hpp"
#include "plan/attention_layers.hpp"

namespace epistle {

struct PlanModel {
  std::string name;
  double hidden = 0;         ///< of the residual stream and of attention
  double routed_hidden = 0;  ///< of a routed row; less than `hidden` where a model routes a latent
  double expert_ffn = 0;
  double expert_matrices = 3;  ///< gate, up and down; two without a gate
  double dense_ffn = 0;        ///< of layers without experts, on average
  double shared_ffn = 0;       ///< of all experts that every token meets; 0 = nothing
  std::int32_t num_experts = 0;
  std::int32_t top_k = 0;
  std::int32_t num_layers = 0;
  std::int32_t num_moe_layers = 0;
  std::int32_t num_groups = 1;  ///< expert groups of the router
  std::int32_t groups_per_token = 1;
  double vocabulary = 0;
  bool tied_embeddings = false;                ///< one matrix for tokens in and out
  std::vector<AttentionLayers> attention;      ///< of all layers; none of those that only have experts
  std::optional<ExpertType> stored_precision;  ///< of experts, where a config says what they are quantized to

  [[nodiscard]] std::int32_t num_dense_layers() const noexcept { return num_layers - num_moe_layers; }
  /// Weights, in elements: attention of all layers; an expert; layers without experts; what stands
  /// beside experts (shared ones and what routes); embeddings.
  [[nodiscard]] double attention_elements() const noexcept;
  [[nodiscard]] double expert_elements() const noexcept;
  [[nodiscard]] double dense_elements() const noexcept;
  [[nodiscard]] double route_elements() const noexcept;  ///< of one layer: router, projections to a latent and back
  [[nodiscard]] double beside_elements() const noexcept;
  [[nodiscard]] double embedding_elements() const noexcept;
  [[nodiscard]] double parameters() const noexcept;
  [[nodiscard]] double active_parameters() const noexcept;  ///< those that a token meets
};

/// A name of epistle models.
[[nodiscard]] PlanModel plan_model_of_preset(std::string_view name);

/// A preset, or a Hugging Face config.json where the name ends in .json.
[[nodiscard]] PlanModel read_plan_model(const std::string& name_or_file);

}  // namespace epistle
