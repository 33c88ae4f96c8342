#include "routing/trace_layers.hpp"

#include <cstddef>

#include <fmt/format.h>

namespace epistle {
namespace {

// Bounds what is remembered of a file; some hundred times the layers of any published model.
constexpr std::size_t kMaxLayers = std::size_t{1} << 16;

constexpr std::size_t kMaxRanges = 10;  // more would not be read

}  // namespace

void LayerList::add(std::int64_t layer) {
  const bool all_listed = num_listed_ == size_++;
  if (all_listed && !ranges_.empty() && ranges_.back().second + 1 == layer) {
    ranges_.back().second = layer;
  } else if (all_listed && ranges_.size() < kMaxRanges) {
    ranges_.emplace_back(layer, layer);
  } else {
    return;
  }
  ++num_listed_;
}

std::string LayerList::text() const {
  std::string text;
  for (const auto& [first, last] : ranges_) {
    if (!text.empty()) text += ", ";
    text += first == last ? fmt::format("{}", first) : fmt::format("{}-{}", first, last);
  }
  return size_ > num_listed_ ? fmt::format("{} and {} more", text, size_ - num_listed_) : text;
}

void TraceLayers::add(std::int64_t layer) {
  const auto [known, is_new] = line_of_.emplace(layer, source_->line());
  if (!is_new) {
    source_->fail_corrupt(
        fmt::format("layer {} stands in line {} already; a trace has one line per layer", layer, known->second));
  }
  if (line_of_.size() > kMaxLayers) {
    source_->fail_corrupt(fmt::format("the trace has more than {} layers; split it", kMaxLayers));
  }
  list_.add(layer);
}

void TraceLayers::require_some() const {
  if (list_.size() == 0) source_->fail_corrupt("the file holds no layers; it is empty, or was never written");
}

}  // namespace epistle
