#include "balance/metrics.hpp"

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <system_error>

#include <unistd.h>

#include <fmt/format.h>

#include "epistle/error.hpp"

namespace epistle::balance {
namespace {

void add_head(std::string& text, const char* name, const char* type, const char* help) {
  fmt::format_to(std::back_inserter(text), "# HELP {} {}\n# TYPE {} {}\n", name, help, name, type);
}

}  // namespace

std::string metrics_text(const LoadSnapshot& loads, const std::vector<LayerMetrics>& layers) {
  if (!layers.empty() && layers.size() != static_cast<std::size_t>(loads.num_layers)) {
    throw Error(ErrorCode::kShapeMismatch,
                fmt::format("metrics of {} layers, expected {}", layers.size(), loads.num_layers));
  }
  std::string text;
  const auto out = std::back_inserter(text);
  add_head(text, "epistle_expert_tokens_total", "counter", "Tokens routed to an expert since the beginning.");
  for (std::int32_t layer = 0; layer < loads.num_layers; ++layer) {
    std::int32_t expert = 0;
    for (const std::int64_t tokens : loads.tokens_of(layer)) {
      fmt::format_to(out, "epistle_expert_tokens_total{{layer=\"{}\",expert=\"{}\"}} {}\n", layer, expert++, tokens);
    }
  }
  if (layers.empty()) return text;
  add_head(text, "epistle_balancedness", "gauge", "Mean over largest load of a rank.");
  for (std::size_t layer = 0; layer < layers.size(); ++layer) {
    fmt::format_to(out, "epistle_balancedness{{layer=\"{}\"}} {}\n", layer, layers[layer].balancedness);
  }
  add_head(text, "epistle_expert_replicas", "gauge", "Slots of an expert.");
  for (std::size_t layer = 0; layer < layers.size(); ++layer) {
    std::int32_t expert = 0;
    for (const std::int32_t replicas : layers[layer].num_replicas) {
      fmt::format_to(out, "epistle_expert_replicas{{layer=\"{}\",expert=\"{}\"}} {}\n", layer, expert++, replicas);
    }
  }
  add_head(text, "epistle_expert_moves_total", "counter", "Expert weights copied between ranks since the beginning.");
  for (std::size_t layer = 0; layer < layers.size(); ++layer) {
    fmt::format_to(out, "epistle_expert_moves_total{{layer=\"{}\"}} {}\n", layer, layers[layer].num_moves);
  }
  return text;
}

void write_metrics(const std::string& path, const std::string& text) {
  // The collector takes files that end in .prom, so it passes this one over.
  const std::string partial = fmt::format("{}.{}.partial", path, getpid());
  const auto fail = [&](const std::string& reason) {
    std::error_code ignored;
    std::filesystem::remove(partial, ignored);
    throw Error(ErrorCode::kSystem, fmt::format("cannot write the metrics to '{}': {}", path, reason));
  };
  std::ofstream file(partial, std::ios::binary | std::ios::trunc);
  file << text;
  file.close();
  if (!file) fail(std::generic_category().message(errno));
  std::error_code error;
  std::filesystem::rename(partial, path, error);
  if (error) fail(error.message());
}

}  // namespace epistle::balance
