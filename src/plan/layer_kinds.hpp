// Which layers of a model have experts and which attention, read from the many ways in which config.json files say so.
#pragma once

#include <cstdint>
#include <vector>

#include "plan/config_fields.hpp"

namespace epistle {

enum class AttentionKind : std::int32_t { kFull, kWindow, kState, kNone };
enum class LayerBody : std::int32_t { kExperts, kDense, kNone };  ///< behind attention

struct LayerKind {
  AttentionKind attention = AttentionKind::kFull;
  LayerBody body = LayerBody::kExperts;
};

/// Tokens that layers with windows see; 0 = there are no windows.
[[nodiscard]] double window_tokens(const ConfigFields& config);

/// Of every layer. Blocks that are either attention or experts (Nemotron) are put together in pairs.
[[nodiscard]] std::vector<LayerKind> read_layer_kinds(const ConfigFields& config);

}  // namespace epistle
