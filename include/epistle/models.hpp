// Published MoE model shapes.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "epistle/export.hpp"

namespace epistle {

struct ModelPreset {
  std::string_view name;     ///< canonical, lower case with dashes: "qwen3-30b-a3b"
  std::string_view aliases;  ///< other accepted names, separated by commas
  std::string_view title;    ///< as its publisher writes it
  std::int64_t hidden = 0;   ///< width of a routed row, in elements (the latent width where a model routes a latent)
  std::int32_t num_experts = 0;
  std::int32_t top_k = 0;
  std::int64_t expert_ffn = 0;       ///< intermediate width of one routed expert
  std::int32_t num_layers = 0;       ///< all layers
  std::int32_t num_dense_first = 0;  ///< leading layers without experts
  std::int32_t num_groups = 1;       ///< expert groups of the router; 1 = no limit
  std::int32_t groups_per_token = 1;
  std::string_view shared;  ///< shared experts, as published; "-" = not stated
  std::string_view source;  ///< where the shape was read
};

[[nodiscard]] EPISTLE_API std::span<const ModelPreset> model_presets() noexcept;

/// Looks up a canonical name or an alias, ignoring case. Throws kNotFound that lists the closest names.
[[nodiscard]] EPISTLE_API const ModelPreset& find_model(std::string_view name);

}  // namespace epistle
