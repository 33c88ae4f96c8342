#include "balance_page.hpp"

#include <algorithm>
#include <cstddef>
#include <functional>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "page_parts.hpp"

namespace epistle::cli {
namespace {

using Numbers = std::vector<double>;

/// Results of the layers under one policy.
struct PolicyLayers {
  std::string policy;
  std::vector<const Json*> layers;
};

std::vector<PolicyLayers> by_policy(const Json& results) {
  std::vector<PolicyLayers> policies;
  for (const Json& result : results) {
    const std::string policy = plain_text(result.at("policy"));
    if (policies.empty() || policies.back().policy != policy) policies.push_back({.policy = policy, .layers = {}});
    policies.back().layers.push_back(&result);
  }
  return policies;
}

std::string balance_text(double value) { return fmt::format("{:.4f}", value); }

html::Cell balance_cell(const Json& value) {
  const double number = value.get<double>();
  return {.text = balance_text(number), .number = number};
}

/// Mean over the layers of every element of a list, from the least to the largest.
html::Series mean_series(const PolicyLayers& policy, const char* field, std::string name) {
  html::Series series{.name = std::move(name), .values = {}};
  const std::size_t size = policy.layers.front()->at(field).size();
  for (std::size_t idx = 0; idx < size; ++idx) {
    double sum = 0.0;
    double low = 1e300;
    double high = -1e300;
    for (const Json* const layer : policy.layers) {
      const double value = layer->at(field).at(idx).get<double>();
      sum += value;
      low = std::min(low, value);
      high = std::max(high, value);
    }
    series.values.emplace_back(sum / static_cast<double>(policy.layers.size()));
    series.low.emplace_back(low);
    series.high.emplace_back(high);
  }
  return series;
}

html::ChartBlock time_chart(const std::vector<PolicyLayers>& policies) {
  html::ChartBlock chart{.kind = html::ChartKind::kLine,
                         .title = "Balancedness over time",
                         .summary =
                             "Mean over the layers in every batch that was scored, from the worst to the best layer; "
                             "beside it what the best shares of that batch would reach in the same placement.",
                         .label_title = "batch",
                         .value_title = "mean over largest load of a rank",
                         .labels = {},
                         .series = {}};
  for (std::size_t idx = 0; idx < policies.front().layers.front()->at("batches").size(); ++idx) {
    chart.labels.push_back(fmt::format("{}", idx + 1));
  }
  for (const PolicyLayers& policy : policies) {
    html::Series reached = mean_series(policy, "batches", policy.policy);
    html::Series bound = mean_series(policy, "batch_bounds", fmt::format("{}, bound", policy.policy));
    bound.low.clear();
    bound.high.clear();
    const bool is_reached = reached.values == bound.values;
    chart.series.push_back(std::move(reached));
    if (!is_reached) chart.series.push_back(std::move(bound));
  }
  return chart;
}

html::ChartBlock layer_chart(const std::vector<PolicyLayers>& policies) {
  html::ChartBlock chart{.kind = html::ChartKind::kHeatMap,
                         .title = "Balancedness of the layers",
                         .summary = "Mean over the batches.",
                         .label_title = "layer",
                         .value_title = "mean over largest load of a rank",
                         .labels = {},
                         .series = {}};
  for (const Json* const layer : policies.front().layers) chart.labels.push_back(plain_text(layer->at("layer")));
  for (const PolicyLayers& policy : policies) {
    html::Series series{.name = policy.policy, .values = {}};
    for (const Json* const layer : policy.layers) series.values.push_back(number_of(layer->at("balancedness")));
    chart.series.push_back(std::move(series));
  }
  return chart;
}

html::ChartBlock copies_chart(const Json& summary) {
  html::ChartBlock chart{.kind = html::ChartKind::kBars,
                         .title = "Copies",
                         .summary = "Weights of experts copied from rank to rank, all layers together.",
                         .label_title = "policy",
                         .value_title = "copies",
                         .labels = {},
                         .series = {{.name = "copies", .values = {}}}};
  for (const Json& policy : summary) {
    chart.labels.push_back(plain_text(policy.at("policy")));
    chart.series.front().values.push_back(number_of(policy.at("copies")));
  }
  return chart;
}

/// How many experts, of all layers, have so many slots.
std::map<int, int> count_replicas(const PolicyLayers& policy) {
  std::map<int, int> experts_with;
  for (const Json* const layer : policy.layers) {
    std::map<int, int> replicas_of;
    for (const Json& rank : layer->at("placement")) {
      for (const Json& expert : rank) {
        if (expert.get<int>() >= 0) ++replicas_of[expert.get<int>()];
      }
    }
    for (const auto& [expert, replicas] : replicas_of) ++experts_with[replicas];
  }
  return experts_with;
}

html::ChartBlock replicas_chart(const std::vector<PolicyLayers>& policies) {
  html::ChartBlock chart{.kind = html::ChartKind::kBars,
                         .title = "Replicas",
                         .summary = "How many experts of all layers have so many slots in the last placement.",
                         .label_title = "slots of an expert",
                         .value_title = "experts",
                         .labels = {},
                         .series = {}};
  std::vector<std::map<int, int>> counts;
  int most = 1;
  for (const PolicyLayers& policy : policies) {
    counts.push_back(count_replicas(policy));
    most = std::max(most, counts.back().empty() ? 1 : counts.back().rbegin()->first);
  }
  for (int replicas = 1; replicas <= most; ++replicas) chart.labels.push_back(fmt::format("{}", replicas));
  for (std::size_t idx = 0; idx < policies.size(); ++idx) {
    html::Series series{.name = policies[idx].policy, .values = {}};
    for (int replicas = 1; replicas <= most; ++replicas) {
      const auto found = counts[idx].find(replicas);
      series.values.emplace_back(found == counts[idx].end() ? 0.0 : static_cast<double>(found->second));
    }
    chart.series.push_back(std::move(series));
  }
  return chart;
}

/// The fullest rank of every layer, then the next: means over the layers.
html::Series sorted_loads(const PolicyLayers& policy, const char* field, std::string name) {
  Numbers sums;
  for (const Json* const layer : policy.layers) {
    auto loads = layer->at(field).get<Numbers>();
    std::sort(loads.begin(), loads.end(), std::greater<>());
    sums.resize(loads.size(), 0.0);
    for (std::size_t idx = 0; idx < loads.size(); ++idx) sums[idx] += loads[idx];
  }
  html::Series series{.name = std::move(name), .values = {}};
  for (const double sum : sums) series.values.emplace_back(sum / static_cast<double>(policy.layers.size()));
  return series;
}

html::ChartBlock ranks_chart(const std::vector<PolicyLayers>& policies) {
  html::ChartBlock chart{.kind = html::ChartKind::kBars,
                         .title = "Load of the ranks, before and after",
                         .summary =
                             "In parts of the mean, over all batches: the fullest rank of every layer, then the next, "
                             "as means over the layers. Before: the first placement, its replicas alike.",
                         .label_title = "rank, the fullest first",
                         .value_title = "load over mean",
                         .labels = {},
                         .series = {sorted_loads(policies.front(), "rank_loads_before", "before")}};
  for (std::size_t idx = 0; idx < chart.series.front().values.size(); ++idx) {
    chart.labels.push_back(fmt::format("{}", idx + 1));
  }
  for (const PolicyLayers& policy : policies) {
    chart.series.push_back(sorted_loads(policy, "rank_loads", policy.policy));
  }
  return chart;
}

html::TableBlock summary_table(const Json& summary) {
  html::TableBlock table{.title = "Policies",
                         .columns = {{"policy"},
                                     {"replicas by"},
                                     {"balancedness", Align::kRight},
                                     {"worst layer", Align::kRight},
                                     {"bound", Align::kRight},
                                     {"copies", Align::kRight},
                                     {"copied", Align::kRight},
                                     {"across domains", Align::kRight},
                                     {"plan", Align::kRight}},
                         .rows = {},
                         .note =
                             "Means over the layers; copies and bytes of all. The bound is that of the best shares in "
                             "the same placement; with loads, that of any placement in these slots."};
  for (const Json& policy : summary) {
    table.rows.push_back({{.text = plain_text(policy.at("policy"))},
                          {.text = plain_text(policy.at("replica_choice"))},
                          balance_cell(policy.at("balancedness")),
                          balance_cell(policy.at("worst")),
                          balance_cell(policy.at("bound")),
                          count_cell(policy.at("copies")),
                          bytes_cell(policy.at("bytes")),
                          bytes_cell(policy.at("bytes_across_domains")),
                          us_cell(policy.at("plan_us"))});
  }
  return table;
}

html::TableBlock layers_table(const Json& results) {
  html::TableBlock table{.title = "Layers",
                         .columns = {{"policy"},
                                     {"layer", Align::kRight},
                                     {"balancedness", Align::kRight},
                                     {"worst batch", Align::kRight},
                                     {"bound", Align::kRight},
                                     {"copies", Align::kRight},
                                     {"plan", Align::kRight},
                                     {"why not more"}},
                         .rows = {}};
  for (const Json& result : results) {
    table.rows.push_back({{.text = plain_text(result.at("policy"))},
                          {.text = plain_text(result.at("layer")), .number = number_of(result.at("layer"))},
                          balance_cell(result.at("balancedness")),
                          balance_cell(result.at("worst")),
                          balance_cell(result.at("bound")),
                          count_cell(result.at("copies")),
                          us_cell(result.at("plan_us")),
                          {.text = result.contains("reason") ? plain_text(result.at("reason")) : ""}});
  }
  return table;
}

}  // namespace

std::string render_balance_page(const Json& record) {
  const std::vector<PolicyLayers> policies = by_policy(record.at("results"));
  html::Page page("epistle balance", fmt::format("{}: {} layers, {} ranks, objective {}",
                                                 plain_text(record.at("source")), policies.front().layers.size(),
                                                 plain_text(record.at("ranks")), plain_text(record.at("objective"))));
  page.add_section("Balance");
  page.add(summary_table(record.at("summary")));
  page.add(time_chart(policies));
  page.add(layer_chart(policies));
  page.add(ranks_chart(policies));
  page.add_section("What it takes");
  page.add(copies_chart(record.at("summary")));
  page.add(replicas_chart(policies));
  page.add_section("Layer by layer");
  page.add(layers_table(record.at("results")));
  html::Facts facts;
  for (const auto& [name, value] : record.items()) {
    if (name != "results" && name != "summary") add_facts(facts, name, value);
  }
  page.add_section("What was asked");
  page.add_facts("Request", facts);
  page.set_record(json_text(record));
  return page.render();
}

}  // namespace epistle::cli
