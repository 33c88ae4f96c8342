// What attention keeps, reads and computes: layers that are alike are one entry.
#pragma once

namespace epistle {

/// Elements are of one layer.
struct AttentionLayers {
  double num_layers = 0;
  double weight_elements = 0;
  double cached_elements_per_token = 0;
  double heads_of_cache = 1;         ///< parts that the cache can be split into: latents of all heads are one
  double score_elements = 0;         ///< of queries and values of all heads: two operations for each token seen
  double decode_score_elements = 0;  ///< the same in decode; more where heads work on latents
  double window_tokens = 0;          ///< sees and keeps the last ones only; 0 = all
  double tokens_per_summary = 0;     ///< keeps one entry for so many tokens beyond the window; 0 = none for them
  double chosen_tokens = 0;          ///< an index chooses as many of what is kept; 0 = it reads all
  double index_elements = 0;         ///< of that index, for each token kept
  double index_score_elements = 0;
  double state_elements = 0;  ///< kept of a sequence instead of its tokens, in 32 bits

  /// Entries in the cache of a sequence of `context_tokens`.
  [[nodiscard]] double kept_tokens(double context_tokens) const noexcept;
  /// Of these, entries that a new token is scored against.
  [[nodiscard]] double seen_tokens(double context_tokens) const noexcept;
  /// What a rank keeps for each of its tokens. The ranks of a TP group keep the cache of all their tokens together,
  /// split by heads; with more ranks than heads several keep the same.
  [[nodiscard]] double cached_elements(double tensor_ranks) const noexcept;
  /// Whether layers differ in nothing but how many there are.
  [[nodiscard]] bool is_like(const AttentionLayers& other) const noexcept;
};

/// Multi-head latent attention: one latent and one rotary key per token for all heads.
struct LatentSizes {
  double heads = 0;
  double query_latent = 0;  ///< 0 = queries come from the hidden row itself
  double kv_latent = 0;
  double key = 0;  ///< of a head, without its rotary part
  double rotary = 0;
  double value = 0;
};
[[nodiscard]] AttentionLayers latent_attention(double hidden, const LatentSizes& sizes) noexcept;

/// Queries in groups that share keys and values.
struct GroupedSizes {
  double heads = 0;
  double kv_heads = 0;
  double key = 0;
  double value = 0;
  bool gated = false;  ///< an output gate as wide as the queries
};
[[nodiscard]] AttentionLayers grouped_attention(double hidden, const GroupedSizes& sizes) noexcept;

/// A state for each head in place of a cache: linear attention and its kin.
struct StateSizes {
  double key_elements = 0;    ///< of all heads
  double value_elements = 0;  ///< likewise; the output is as wide
  double gate_elements = 0;
  double state_elements = 0;
};
[[nodiscard]] AttentionLayers state_attention(double hidden, const StateSizes& sizes) noexcept;

}  // namespace epistle
