// epistle trace: how the experts of a recorded routing are loaded.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <new>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "epistle/error.hpp"
#include "epistle/trace.hpp"

#include "commands.hpp"
#include "json_option.hpp"
#include "json_text.hpp"
#include "number_options.hpp"
#include "output.hpp"
#include "report/bar.hpp"
#include "report/format.hpp"
#include "report/progress.hpp"
#include "report/table.hpp"
#include "routing/trace_layers.hpp"

namespace epistle::cli {
namespace {

constexpr int kSkewBarColumns = 12;
constexpr int kHistogramBarColumns = 40;
constexpr std::int32_t kDefaultTop = 3;
constexpr std::int32_t kAllLayers = -1;

// Experts of all layers together: their counts are held until the table is made. Ten times what 200 layers of 512
// experts have; with the table or the JSON made from them they take some 350 MB.
constexpr std::int64_t kMaxHeldExperts = std::int64_t{1} << 20;

struct TraceOptions {
  std::string path;
  std::int32_t layer = kAllLayers;
  std::int32_t top = 0;  ///< 0 = not given
  std::string json_target;
  bool quiet = false;
};

/// How unevenly the assignments of a layer fall on its experts.
struct LoadStats {
  std::int64_t num_assignments = 0;
  double mean = 0.0;
  double max_over_mean = 0.0;         ///< 1 = even; 0 where there are no assignments
  double variation = 0.0;             ///< standard deviation / mean
  std::vector<std::int32_t> by_load;  ///< experts, the hottest first, ties by id

  [[nodiscard]] double share(std::int64_t num_tokens) const {
    return num_assignments > 0 ? static_cast<double>(num_tokens) / static_cast<double>(num_assignments) : 0.0;
  }
};

LoadStats compute_load(const std::vector<std::int64_t>& tokens_per_expert) {
  LoadStats stats;
  stats.by_load.resize(tokens_per_expert.size());
  std::iota(stats.by_load.begin(), stats.by_load.end(), 0);
  const auto tokens_of = [&](std::int32_t expert) { return tokens_per_expert[static_cast<std::size_t>(expert)]; };
  std::stable_sort(stats.by_load.begin(), stats.by_load.end(),
                   [&](std::int32_t a, std::int32_t b) { return tokens_of(a) > tokens_of(b); });
  stats.num_assignments = std::accumulate(tokens_per_expert.begin(), tokens_per_expert.end(), std::int64_t{0});
  if (stats.num_assignments == 0) return stats;

  const auto num_experts = static_cast<double>(tokens_per_expert.size());
  stats.mean = static_cast<double>(stats.num_assignments) / num_experts;
  stats.max_over_mean = static_cast<double>(tokens_of(stats.by_load.front())) / stats.mean;
  double squares = 0.0;
  for (const std::int64_t tokens : tokens_per_expert) {
    const double deviation = static_cast<double>(tokens) - stats.mean;
    squares += deviation * deviation;
  }
  stats.variation = std::sqrt(squares / num_experts) / stats.mean;
  return stats;
}

struct AnalysedLayer {
  TraceLayerSummary summary;
  LoadStats load;

  [[nodiscard]] std::int64_t tokens_of(std::int32_t expert) const {
    return summary.tokens_per_expert[static_cast<std::size_t>(expert)];
  }
};

/// The layers that a table is to show. Adds them to a total that memory can hold.
class ShownLayers {
 public:
  explicit ShownLayers(const TraceOptions& options) : options_(&options) {}

  void add(const TraceLayerSummary& summary) {
    if (options_->layer != kAllLayers && summary.layer != options_->layer) return;
    num_experts_ += summary.num_experts;
    if (num_experts_ > kMaxHeldExperts) {
      throw Error(ErrorCode::kOutOfMemory,
                  fmt::format("the layers of '{}' up to {} have {} experts together, and a table holds {}; show one "
                              "layer with --layer",
                              options_->path, summary.layer, num_experts_, kMaxHeldExperts));
    }
    layers_.push_back({.summary = summary, .load = compute_load(summary.tokens_per_expert)});
  }
  [[nodiscard]] std::vector<AnalysedLayer> take() { return std::move(layers_); }

 private:
  const TraceOptions* options_;
  std::int64_t num_experts_ = 0;
  std::vector<AnalysedLayer> layers_;
};

std::vector<AnalysedLayer> read_layers(const TraceOptions& options) {
  ShownLayers shown(options);
  LayerList present;
  Progress progress(fmt::format("reading {}", options.path), options.quiet);
  summarize_trace(
      options.path,
      [&](const TraceLayerSummary& summary) {
        present.add(summary.layer);
        shown.add(summary);
      },
      [&](std::int64_t bytes_read, std::int64_t bytes_total) { progress.update(bytes_read, bytes_total); });
  progress.finish();
  std::vector<AnalysedLayer> layers = shown.take();
  if (options.layer != kAllLayers && layers.empty()) {
    throw Error(ErrorCode::kNotFound, fmt::format("layer {} is not in the trace '{}'; it holds these layers: {}",
                                                  options.layer, options.path, present.text()));
  }
  return layers;
}

std::string describe_hottest(const AnalysedLayer& layer, std::int32_t top) {
  std::string text;
  for (const std::int32_t expert : layer.load.by_load) {
    if (top-- <= 0) break;
    text += fmt::format("{}{} ({})", text.empty() ? "" : ", ", expert,
                        format_percent(layer.load.share(layer.tokens_of(expert))));
  }
  return text;
}

std::string render_layers(const std::vector<AnalysedLayer>& layers, std::int32_t top) {
  double most_skewed = 0.0;
  for (const AnalysedLayer& layer : layers) most_skewed = std::max(most_skewed, layer.load.max_over_mean);
  const BarStyle style = detect_bar_style();
  Table table({{"layer", Align::kRight},
               {"experts", Align::kRight},
               {"top-k", Align::kRight},
               {"tokens", Align::kRight},
               {"dropped", Align::kRight},
               {"max/mean", Align::kRight},
               {"cv", Align::kRight},
               {"skew", Align::kLeft},
               {"hottest experts (share)", Align::kLeft}});
  for (const AnalysedLayer& layer : layers) {
    const TraceLayerSummary& summary = layer.summary;
    table.add_row({std::to_string(summary.layer), std::to_string(summary.num_experts), std::to_string(summary.top_k),
                   format_count(summary.num_tokens), format_count(summary.num_dropped),
                   fmt::format("{:.2f}", layer.load.max_over_mean), fmt::format("{:.2f}", layer.load.variation),
                   make_bar(layer.load.max_over_mean / std::max(most_skewed, 1.0), kSkewBarColumns, style),
                   describe_hottest(layer, top)});
  }
  return table.render();
}

std::string render_histogram(const AnalysedLayer& layer, std::int32_t top) {
  const TraceLayerSummary& summary = layer.summary;
  const LoadStats& load = layer.load;
  std::vector<std::int32_t> experts = load.by_load;
  if (top > 0) {
    experts.resize(std::min(experts.size(), static_cast<std::size_t>(top)));
  } else {
    std::sort(experts.begin(), experts.end());
  }
  const std::int64_t most_tokens = load.by_load.empty() ? 0 : layer.tokens_of(load.by_load.front());
  const BarStyle style = detect_bar_style();
  Table table({{"expert", Align::kRight},
               {"tokens", Align::kRight},
               {"share", Align::kRight},
               {"of mean", Align::kRight},
               {"", Align::kLeft}});
  for (const std::int32_t expert : experts) {
    const std::int64_t tokens = layer.tokens_of(expert);
    const double of_mean = load.mean > 0.0 ? static_cast<double>(tokens) / load.mean : 0.0;
    const double of_most = most_tokens > 0 ? static_cast<double>(tokens) / static_cast<double>(most_tokens) : 0.0;
    table.add_row({std::to_string(expert), format_count(tokens), format_percent(load.share(tokens)),
                   fmt::format("{:.2f}", of_mean), make_bar(of_most, kHistogramBarColumns, style)});
  }
  return fmt::format("layer {}: {} experts, top-{}, {} tokens, {} dropped, max/mean {:.2f}, cv {:.2f}\n\n{}",
                     summary.layer, summary.num_experts, summary.top_k, format_count(summary.num_tokens),
                     format_count(summary.num_dropped), load.max_over_mean, load.variation, table.render());
}

Json to_json(const AnalysedLayer& layer, std::int32_t top) {
  const TraceLayerSummary& summary = layer.summary;
  Json hottest = Json::array();
  for (const std::int32_t expert : layer.load.by_load) {
    if (top-- <= 0) break;
    hottest.push_back({{"expert", expert},
                       {"tokens", layer.tokens_of(expert)},
                       {"share", layer.load.share(layer.tokens_of(expert))}});
  }
  return {{"layer", summary.layer},
          {"num_experts", summary.num_experts},
          {"top_k", summary.top_k},
          {"num_tokens", summary.num_tokens},
          {"num_dropped", summary.num_dropped},
          {"max_over_mean", layer.load.max_over_mean},
          {"coefficient_of_variation", layer.load.variation},
          {"hottest", hottest},
          {"tokens_per_expert", summary.tokens_per_expert}};
}

void show_trace(const TraceOptions& options) {
  if (!options.json_target.empty()) check_output(options.json_target);
  const std::vector<AnalysedLayer> layers = read_layers(options);
  const std::int32_t top = options.top > 0 ? options.top : kDefaultTop;
  if (!options.json_target.empty()) {
    Json list = Json::array();
    for (const AnalysedLayer& layer : layers) list.push_back(to_json(layer, top));
    write_output(options.json_target, json_text({{"file", options.path}, {"layers", list}}));
    if (options.json_target == kStdout) return;
  }
  if (options.layer == kAllLayers) {
    print(render_layers(layers, top));
  } else {
    print(render_histogram(layers.front(), options.top));
  }
}

}  // namespace

void add_trace_command(CLI::App& app, int& /*exit_code*/) {
  CLI::App* const command = app.add_subcommand("trace", "Show how a recorded routing loads the experts");
  const auto options = std::make_shared<TraceOptions>();
  command->add_option("file", options->path, "JSON lines, plain or gzip")->required()->type_name("FILE");
  add_number(*command, "--layer", options->layer, {0, kMaxInt32}, "Show the tokens of every expert of this layer")
      ->type_name("L");
  add_number(*command, "--top", options->top, {1, kMaxInt32},
             fmt::format("Experts to list per layer (default {}); with --layer: only the N hottest", kDefaultTop));
  add_json_option(*command, options->json_target);
  command->add_flag("-q,--quiet", options->quiet, "No progress bar");
  command->footer(
      "max/mean is the load of the hottest expert over the mean load, cv the standard deviation over the mean, share "
      "an\n"
      "expert's part of all assignments of its layer. The longest skew bar is the most skewed layer of the file.");
  command->callback([options] {
    try {
      show_trace(*options);
    } catch (const std::bad_alloc&) {
      throw Error(
          ErrorCode::kOutOfMemory,
          fmt::format("the counts of '{}' do not fit into the memory left; raise its limit (ulimit -v), or show "
                      "one layer with --layer",
                      options->path));
    }
  });
}

}  // namespace epistle::cli
