// What a batch will bring the experts of a layer, foretold by what it has brought those of the layers before. Tokens
// keep their subject from layer to layer: which experts they choose in one tells much of which ones they choose in the
// next. What is foretold so is known before the layer routes anything, and its counts are there already: a layout tells
// all ranks the counts of all. Nothing has to be exchanged while a dispatch waits.
#pragma once

#include <cstdint>
#include <list>
#include <span>
#include <vector>

#include "epistle/routing.hpp"

namespace epistle::balance {

/// More inputs foretell a little better, and take time with their third power: eight layers of 64 experts.
inline constexpr std::int32_t kMaxForecastInputs = 512;

/// Linear: the expected deviation of a layer's experts from their mean, given those of the experts of layers before.
/// Learnt from tokens by least squares, drawn towards 0 so that what is rare in them tells little.
class LayerForecast {
 public:
  /// Foretells nothing.
  LayerForecast() = default;
  /// Learns from tokens [begin, end) of `layer` and of the layers `before` it, in which they are the same.
  LayerForecast(std::span<const RoutingTable* const> before, const RoutingTable& layer, std::int64_t begin,
                std::int64_t end);

  /// Experts of all layers before.
  [[nodiscard]] std::int32_t num_inputs() const noexcept { return num_inputs_; }
  /// `loads`, of sum 1, as they are to be expected where the layers before have `now` in place of `usual`:
  /// [num_inputs] each, of sum 1.
  [[nodiscard]] std::vector<double> foretell(std::vector<double> loads, std::span<const double> now,
                                             std::span<const double> usual) const;

 private:
  void learn_sums(std::span<const RoutingTable* const> before, const RoutingTable& layer, std::int64_t begin,
                  std::int64_t end);
  void factorize();
  [[nodiscard]] double& gram(std::int32_t row, std::int32_t column) {
    return gram_[static_cast<std::size_t>(row) * static_cast<std::size_t>(num_inputs_) +
                 static_cast<std::size_t>(column)];
  }

  std::int32_t num_inputs_ = 0;
  std::int32_t num_experts_ = 0;
  double num_layers_ = 0.0;
  std::vector<double> gram_;   // [inputs, inputs] the upper triangle; after factorize() its Cholesky factor
  std::vector<double> cross_;  // [inputs, experts]
};

/// Counts of tokens [begin, end) by expert, of one layer after the other.
[[nodiscard]] std::vector<double> count_inputs(std::span<const RoutingTable* const> layers, std::int64_t begin,
                                               std::int64_t end);

/// The layers of a trace that were read last, as far as a forecast uses them.
class LayersBefore {
 public:
  void add(std::int32_t layer, RoutingTable table);
  /// Those before `layer` with as many tokens, in the order in which they were read.
  [[nodiscard]] std::vector<const RoutingTable*> of(std::int32_t layer, std::int64_t num_tokens) const;

 private:
  struct Kept {
    std::int32_t layer;
    RoutingTable table;
  };
  std::list<Kept> kept_;
  std::int64_t num_inputs_ = 0;
};

}  // namespace epistle::balance
