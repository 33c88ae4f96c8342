#include "balance/layer_forecast.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <utility>

namespace epistle::balance {
namespace {

using Values = std::vector<double>;

// Tokens in which nothing deviates, as if these had been seen besides. Between 10 and 200 the traces that it was chosen
// on show little difference.
constexpr double kRidge = 50.0;

std::span<const std::int32_t> ids_of(const RoutingTable& table, std::int64_t token) {
  const auto top_k = static_cast<std::size_t>(table.top_k);
  return std::span(table.expert_ids).subspan(static_cast<std::size_t>(token) * top_k, top_k);
}

/// The inputs that are 1 for a token: its experts in the layers before.
void list_inputs(std::span<const RoutingTable* const> before, std::int64_t token, std::vector<std::int32_t>& inputs) {
  inputs.clear();
  std::int32_t first = 0;
  for (const RoutingTable* table : before) {
    for (const std::int32_t expert : ids_of(*table, token)) {
      if (expert >= 0) inputs.push_back(first + expert);
    }
    first += table->num_experts;
  }
}

}  // namespace

LayerForecast::LayerForecast(std::span<const RoutingTable* const> before, const RoutingTable& layer, std::int64_t begin,
                             std::int64_t end)
    : num_experts_(layer.num_experts), num_layers_(static_cast<double>(before.size())) {
  for (const RoutingTable* table : before) num_inputs_ += table->num_experts;
  const auto inputs = static_cast<std::size_t>(num_inputs_);
  gram_.assign(inputs * inputs, 0.0);
  cross_.assign(inputs * static_cast<std::size_t>(num_experts_), 0.0);
  if (num_inputs_ == 0 || end <= begin) return;
  learn_sums(before, layer, begin, end);
  factorize();
}

/// Sums of products of deviations from the mean.
void LayerForecast::learn_sums(std::span<const RoutingTable* const> before, const RoutingTable& layer,
                               std::int64_t begin, std::int64_t end) {
  const auto experts = static_cast<std::size_t>(num_experts_);
  Values sum(static_cast<std::size_t>(num_inputs_), 0.0);
  Values sum_of_layer(experts, 0.0);
  std::vector<std::int32_t> inputs;
  for (std::int64_t token = begin; token < end; ++token) {
    list_inputs(before, token, inputs);
    for (const std::int32_t row : inputs) {
      ++sum[static_cast<std::size_t>(row)];
      for (const std::int32_t column : inputs) {
        if (column >= row) ++gram(row, column);
      }
      for (const std::int32_t expert : ids_of(layer, token)) {
        if (expert >= 0) ++cross_[static_cast<std::size_t>(row) * experts + static_cast<std::size_t>(expert)];
      }
    }
    for (const std::int32_t expert : ids_of(layer, token)) {
      if (expert >= 0) ++sum_of_layer[static_cast<std::size_t>(expert)];
    }
  }
  const auto num_tokens = static_cast<double>(end - begin);
  for (std::int32_t row = 0; row < num_inputs_; ++row) {
    const double mean = sum[static_cast<std::size_t>(row)] / num_tokens;
    for (std::int32_t column = row; column < num_inputs_; ++column) {
      gram(row, column) -= mean * sum[static_cast<std::size_t>(column)];
    }
    gram(row, row) += kRidge;
    for (std::size_t expert = 0; expert < experts; ++expert) {
      cross_[static_cast<std::size_t>(row) * experts + expert] -= mean * sum_of_layer[expert];
    }
  }
}

/// Cholesky. Rows are taken off those below them: what lies side by side is changed together.
void LayerForecast::factorize() {
  const auto inputs = static_cast<std::size_t>(num_inputs_);
  for (std::size_t row = 0; row < inputs; ++row) {
    double* const own = gram_.data() + row * inputs;
    // The ridge keeps it positive, but for what is rounded.
    const double root = std::sqrt(std::max(own[row], kRidge / 2.0));
    own[row] = root;
    for (std::size_t column = row + 1; column < inputs; ++column) own[column] /= root;
    for (std::size_t below = row + 1; below < inputs; ++below) {
      const double factor = own[below];
      double* const other = gram_.data() + below * inputs;
      for (std::size_t column = below; column < inputs; ++column) other[column] -= factor * own[column];
    }
  }
}

std::vector<double> LayerForecast::foretell(std::vector<double> loads, std::span<const double> now,
                                            std::span<const double> usual) const {
  const auto inputs = static_cast<std::size_t>(num_inputs_);
  const auto experts = static_cast<std::size_t>(num_experts_);
  Values weight(inputs);
  for (std::size_t row = 0; row < inputs; ++row) weight[row] = now[row] - usual[row];
  for (std::size_t row = 0; row < inputs; ++row) {
    const double* const own = gram_.data() + row * inputs;
    weight[row] /= own[row];
    for (std::size_t column = row + 1; column < inputs; ++column) weight[column] -= own[column] * weight[row];
  }
  for (std::size_t row = inputs; row > 0; --row) {
    const double* const own = gram_.data() + (row - 1) * inputs;
    for (std::size_t column = row; column < inputs; ++column) weight[row - 1] -= own[column] * weight[column];
    weight[row - 1] /= own[row - 1];
  }
  for (std::size_t row = 0; row < inputs; ++row) {
    // Inputs are parts of all layers before, loads those of one.
    for (std::size_t expert = 0; expert < experts; ++expert) {
      loads[expert] += num_layers_ * weight[row] * cross_[row * experts + expert];
    }
  }
  for (double& load : loads) load = std::max(load, 0.0);
  return loads;
}

std::vector<double> count_inputs(std::span<const RoutingTable* const> layers, std::int64_t begin, std::int64_t end) {
  std::int32_t num_inputs = 0;
  for (const RoutingTable* table : layers) num_inputs += table->num_experts;
  Values counts(static_cast<std::size_t>(num_inputs), 0.0);
  std::vector<std::int32_t> inputs;
  for (std::int64_t token = begin; token < end; ++token) {
    list_inputs(layers, token, inputs);
    for (const std::int32_t input : inputs) ++counts[static_cast<std::size_t>(input)];
  }
  return counts;
}

void LayersBefore::add(std::int32_t layer, RoutingTable table) {
  num_inputs_ += table.num_experts;
  table.weights = {};
  kept_.push_back({layer, std::move(table)});
  while (num_inputs_ > kMaxForecastInputs) {
    num_inputs_ -= kept_.front().table.num_experts;
    kept_.pop_front();
  }
}

std::vector<const RoutingTable*> LayersBefore::of(std::int32_t layer, std::int64_t num_tokens) const {
  std::vector<const RoutingTable*> tables;
  for (const Kept& kept : kept_) {
    if (kept.layer < layer && kept.table.num_tokens == num_tokens) tables.push_back(&kept.table);
  }
  return tables;
}

}  // namespace epistle::balance
