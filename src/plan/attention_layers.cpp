#include "plan/attention_layers.hpp"

#include <algorithm>
#include <array>

namespace epistle {

double AttentionLayers::kept_tokens(double context_tokens) const noexcept {
  if (state_elements > 0) return 0.0;
  if (window_tokens <= 0) return context_tokens;
  const double summaries = tokens_per_summary > 0 ? context_tokens / tokens_per_summary : 0.0;
  return std::min(std::min(window_tokens, context_tokens) + summaries, context_tokens);
}

double AttentionLayers::seen_tokens(double context_tokens) const noexcept {
  const double kept = kept_tokens(context_tokens);
  return chosen_tokens > 0 ? std::min(chosen_tokens, kept) : kept;
}

double AttentionLayers::cached_elements(double tensor_ranks) const noexcept {
  return cached_elements_per_token * std::max(tensor_ranks / heads_of_cache, 1.0);
}

bool AttentionLayers::is_like(const AttentionLayers& other) const noexcept {
  const auto sizes = [](const AttentionLayers& layers) {
    return std::array{layers.weight_elements,       layers.cached_elements_per_token,
                      layers.heads_of_cache,        layers.score_elements,
                      layers.decode_score_elements, layers.window_tokens,
                      layers.tokens_per_summary,    layers.chosen_tokens,
                      layers.index_elements,        layers.index_score_elements,
                      layers.state_elements};
  };
  return sizes(*this) == sizes(other);
}

AttentionLayers latent_attention(double hidden, const LatentSizes& sizes) noexcept {
  const double key = sizes.key + sizes.rotary;
  const double query_elements = sizes.query_latent > 0
                                    ? hidden * sizes.query_latent + sizes.query_latent * sizes.heads * key
                                    : hidden * sizes.heads * key;
  return {.weight_elements = query_elements + hidden * (sizes.kv_latent + sizes.rotary) +
                             sizes.kv_latent * sizes.heads * (sizes.key + sizes.value) +
                             sizes.heads * sizes.value * hidden,
          .cached_elements_per_token = sizes.kv_latent + sizes.rotary,
          .score_elements = sizes.heads * (key + sizes.value),
          // In decode heads meet the latents as they are cached.
          .decode_score_elements = sizes.heads * (2 * sizes.kv_latent + sizes.rotary)};
}

AttentionLayers grouped_attention(double hidden, const GroupedSizes& sizes) noexcept {
  const double widths = sizes.key + sizes.value;
  const double gate_elements = sizes.gated ? hidden * sizes.heads * sizes.value : 0.0;
  const double score_elements = sizes.heads * widths;
  return {.weight_elements = hidden * widths * (sizes.heads + sizes.kv_heads) + gate_elements,
          .cached_elements_per_token = sizes.kv_heads * widths,
          .heads_of_cache = sizes.kv_heads,
          .score_elements = score_elements,
          .decode_score_elements = score_elements};
}

AttentionLayers state_attention(double hidden, const StateSizes& sizes) noexcept {
  return {.weight_elements = hidden * (2 * sizes.key_elements + 2 * sizes.value_elements + sizes.gate_elements),
          .state_elements = sizes.state_elements};
}

}  // namespace epistle
