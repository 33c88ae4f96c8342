#include "simulate_report.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "page_parts.hpp"
#include "report/format.hpp"
#include "report/table.hpp"

namespace epistle::cli {
namespace {

constexpr std::size_t kMostStepLines = 32;

double real(const Json& value) { return value.get<double>(); }

/// The mean over all steps of what `value` finds in each dispatcher's entry.
double mean_of(const Json& steps, std::size_t place, const std::function<double(const Json&)>& value) {
  double sum = 0.0;
  for (const Json& step : steps) sum += value(step.at("dispatchers").at(place));
  return sum / static_cast<double>(steps.size());
}

/// Bytes of both directions by class of link, per rank.
std::string class_text(const Json& document, std::size_t place, const char* field) {
  const double bytes = mean_of(document.at("steps"), place, [field](const Json& mode) {
    return real(mode.at("dispatch").at(field)) + real(mode.at("combine").at(field));
  });
  return format_bytes(std::llround(bytes / real(document.at("ranks"))));
}

/// Of a dispatch: the rail with most bytes over the mean of all.
std::string rail_text(const Json& exchange) {
  const Json& rails = exchange.at("rail_bytes");
  double most = 0.0;
  double sum = 0.0;
  for (const Json& bytes : rails) {
    most = std::max(most, real(bytes));
    sum += real(bytes);
  }
  return sum > 0 ? fmt::format("{:.3f}", most * static_cast<double>(rails.size()) / sum) : std::string("-");
}

std::string link_text(const Json& exchange) {
  const Json& link = exchange.at("busiest_link");
  if (real(link.at("bytes")) <= 0) return "-";
  return fmt::format("{} of rank {}: {}", plain_text(link.at("link")), plain_text(link.at("rank")),
                     format_us(real(link.at("us"))));
}

std::string difference_text(const Json& counted, const Json& forms, const char* field) {
  if (forms.is_null()) return "-";
  const double closed = real(forms.at(field));
  return fmt::format("{:.3f} ({:+.2f}%)", closed, 100.0 * (closed / real(counted.at(field)) - 1.0));
}

std::string render_counts(const Json& step) {
  Table table({{"count", Align::kLeft}, {"simulated", Align::kRight}, {"closed form", Align::kRight}});
  const std::pair<const char*, const char*> lines[] = {{"distinct ranks per token", "distinct_ranks"},
                                                       {"distinct domains per token", "distinct_domains"},
                                                       {"busiest rank over mean", "busiest_rank_factor"}};
  for (const auto& [name, field] : lines) {
    table.add_row(
        {name, fmt::format("{:.3f}", real(step.at(field))), difference_text(step, step.at("closed_forms"), field)});
  }
  return table.render();
}

std::string render_modes(const Json& document) {
  const Json& steps = document.at("steps");
  const Json& last = steps.back().at("dispatchers");
  Table table({{"dispatcher", Align::kLeft},
               {"SMs", Align::kRight},
               {"to itself", Align::kRight},
               {"in the domain", Align::kRight},
               {"network", Align::kRight},
               {"busiest rail", Align::kRight},
               {"dispatch", Align::kRight},
               {"GEMM", Align::kRight},
               {"combine", Align::kRight},
               {"layer", Align::kRight},
               {"straggler", Align::kRight},
               {"busiest link of dispatch", Align::kLeft}});
  std::string refusals;
  for (std::size_t place = 0; place < last.size(); ++place) {
    const Json& mode = last.at(place);
    if (mode.at("possible") == false) {
      refusals += fmt::format("  {}: {}\n", plain_text(mode.at("name")), plain_text(mode.at("why_not")));
      continue;
    }
    const auto us = [&](const char* part) {
      return format_us(mean_of(steps, place, [part](const Json& entry) { return real(entry.at(part).at("us")); }));
    };
    const auto field = [&](const char* name) {
      return mean_of(steps, place, [name](const Json& entry) { return real(entry.at(name)); });
    };
    table.add_row({plain_text(mode.at("name")), plain_text(mode.at("sms")), class_text(document, place, "self_bytes"),
                   class_text(document, place, "domain_bytes"), class_text(document, place, "network_bytes"),
                   rail_text(mode.at("dispatch")), us("dispatch"), us("grouped_gemm"), us("combine"),
                   format_us(field("layer_us")), fmt::format("{:.2f}", field("straggler_factor")),
                   link_text(mode.at("dispatch"))});
  }
  std::string text = table.render() + "Bytes are per rank, both ways. " +
                     (document.at("measurements").empty() ? "Times are of priors; --measurements refits their curves.\n"
                                                          : "Times are of curves fitted to --measurements.\n");
  if (document.at("domains") > 1) {
    text +=
        fmt::format("A domain has {} network cards on {} rails; busiest rail: its bytes of a dispatch over the mean.\n",
                    plain_text(document.at("nics_per_domain")), plain_text(document.at("rails")));
  }
  return refusals.empty() ? text : text + "\nNot possible here:\n" + refusals;
}

/// The dispatcher with the shortest mean layer, by its place; none where all are refused. What cannot be run is the
/// shortest only where nothing else is there.
std::size_t fastest(const Json& steps) {
  const Json& modes = steps.front().at("dispatchers");
  std::size_t best = modes.size();
  std::pair<bool, double> best_rank;
  for (std::size_t place = 0; place < modes.size(); ++place) {
    if (modes.at(place).at("possible") == false) continue;
    const std::pair<bool, double> rank = {
        modes.at(place).at("only_a_bound") == true,
        mean_of(steps, place, [](const Json& mode) { return real(mode.at("layer_us")); })};
    if (best < modes.size() && rank >= best_rank) continue;
    best = place;
    best_rank = rank;
  }
  return best;
}

std::string render_steps(const Json& document) {
  const Json& steps = document.at("steps");
  const std::size_t place = fastest(steps);
  const bool timed = place < steps.front().at("dispatchers").size();
  std::vector<Column> columns = {{"step", Align::kRight},
                                 {"distinct ranks", Align::kRight},
                                 {"busiest / mean", Align::kRight},
                                 {"copies", Align::kRight},
                                 {"copied", Align::kRight}};
  if (timed) {
    const std::string name = plain_text(steps.front().at("dispatchers").at(place).at("name"));
    columns.push_back({fmt::format("layer, {}", name), Align::kRight});
  }
  Table table(columns);
  const std::size_t stride = (steps.size() + kMostStepLines - 1) / kMostStepLines;
  double sum = 0.0;
  for (std::size_t idx = 0; idx < steps.size(); ++idx) {
    const Json& step = steps.at(idx);
    sum += real(step.at("busiest_rank_factor"));
    if (idx % stride != 0) continue;
    std::vector<std::string> cells = {
        plain_text(step.at("step")), fmt::format("{:.3f}", real(step.at("distinct_ranks"))),
        fmt::format("{:.3f}", real(step.at("busiest_rank_factor"))), plain_text(step.at("copies").at("num_copies")),
        format_bytes(step.at("copies").at("bytes").get<std::int64_t>())};
    if (timed) cells.push_back(format_us(real(step.at("dispatchers").at(place).at("layer_us"))));
    table.add_row(std::move(cells));
  }
  std::string text = table.render();
  if (stride > 1) text += fmt::format("One line for every {} steps; --json has all.\n", stride);
  return text + fmt::format("Busiest over mean, mean of the steps: {:.3f}\n", sum / static_cast<double>(steps.size()));
}

html::ChartBlock bytes_chart(const Json& document) {
  html::ChartBlock chart{.kind = html::ChartKind::kStackedBars,
                         .title = "Bytes by class of link",
                         .summary =
                             "Bytes per rank of a dispatch and a combine: to the rank itself, inside its domain, "
                             "over the network. Mean of the steps.",
                         .label_title = "dispatcher",
                         .value_title = "MB per rank",
                         .labels = {},
                         .series = {}};
  const std::pair<const char*, const char*> classes[] = {
      {"to itself", "self_bytes"}, {"in the domain", "domain_bytes"}, {"network", "network_bytes"}};
  for (const auto& [name, field] : classes) chart.series.push_back({.name = name, .values = {}});
  const Json& steps = document.at("steps");
  const Json& modes = steps.front().at("dispatchers");
  for (std::size_t place = 0; place < modes.size(); ++place) {
    if (modes.at(place).at("possible") == false) continue;
    chart.labels.push_back(plain_text(modes.at(place).at("name")));
    for (std::size_t idx = 0; idx < std::size(classes); ++idx) {
      const char* const field = classes[idx].second;
      const double bytes = mean_of(steps, place, [field](const Json& mode) {
        return real(mode.at("dispatch").at(field)) + real(mode.at("combine").at(field));
      });
      chart.series[idx].values.emplace_back(bytes / real(document.at("ranks")) / 1e6);
    }
  }
  return chart;
}

html::ChartBlock times_chart(const Json& document) {
  html::ChartBlock chart{.kind = html::ChartKind::kStackedBars,
                         .title = "Time of a layer",
                         .summary = "Until the slowest rank is done with each part. Mean of the steps.",
                         .label_title = "dispatcher",
                         .value_title = "microseconds",
                         .labels = {},
                         .series = {}};
  const Json& steps = document.at("steps");
  const Json& modes = steps.front().at("dispatchers");
  for (const char* const part : {"dispatch", "grouped_gemm", "combine"}) {
    html::Series series{.name = part, .values = {}};
    for (std::size_t place = 0; place < modes.size(); ++place) {
      if (modes.at(place).at("possible") == false) continue;
      if (chart.series.empty()) chart.labels.push_back(plain_text(modes.at(place).at("name")));
      series.values.emplace_back(
          mean_of(steps, place, [part](const Json& mode) { return real(mode.at(part).at("us")); }));
    }
    chart.series.push_back(std::move(series));
  }
  return chart;
}

html::ChartBlock steps_chart(const Json& document) {
  html::ChartBlock chart{.kind = html::ChartKind::kLine,
                         .title = "Busiest rank by step",
                         .summary = "Rows of the busiest rank over those of the average one, step by step.",
                         .label_title = "step",
                         .value_title = "busiest rank over mean",
                         .labels = {},
                         .series = {{.name = plain_text(document.at("policy")), .values = {}}}};
  for (const Json& step : document.at("steps")) {
    chart.labels.push_back(plain_text(step.at("step")));
    chart.series.front().values.emplace_back(real(step.at("busiest_rank_factor")));
  }
  return chart;
}

html::ChartBlock ranks_chart(const Json& document) {
  std::vector<std::int64_t> rows;
  for (const Json& rank : document.at("last_ranks")) rows.push_back(rank.at("assignments").get<std::int64_t>());
  constexpr int kBins = 20;
  html::Histogram histogram = html::make_histogram(rows, kBins);
  return {.kind = html::ChartKind::kHistogram,
          .title = "Load of the ranks",
          .summary = "How many ranks get how many (token, expert) pairs in the last step.",
          .label_title = "assignments of a rank",
          .value_title = "ranks",
          .labels = std::move(histogram.labels),
          .series = {{.name = "ranks", .values = std::move(histogram.counts)}}};
}

std::string simulation_subtitle(const Json& document) {
  return fmt::format(
      "{} ranks of {} in {} domain{}: {} experts in {} slots, top {}, {} tokens per rank, routing {}, {}",
      plain_text(document.at("ranks")), plain_text(document.at("cluster")), plain_text(document.at("domains")),
      document.at("domains") == 1 ? "" : "s", plain_text(document.at("experts")), plain_text(document.at("slots")),
      plain_text(document.at("top_k")), plain_text(document.at("tokens_per_rank")), plain_text(document.at("routing")),
      document.at("policy") == "none" ? "no balancing" : plain_text(document.at("policy")));
}

}  // namespace

std::string render_simulation(const Json& document) {
  const Json& steps = document.at("steps");
  std::string text = simulation_subtitle(document) + "\n\n" + render_counts(steps.back()) + "\n";
  if (steps.size() > 1) text += render_steps(document) + "\n";
  return text + render_modes(document);
}

std::string render_simulation_page(const Json& document) {
  html::Page page("epistle simulate", simulation_subtitle(document));
  page.add_section("What moves");
  page.add(bytes_chart(document));
  page.add(ranks_chart(document));
  page.add_section("What it takes");
  page.add(times_chart(document));
  if (document.at("steps").size() > 1) page.add(steps_chart(document));
  page.set_record(json_text(document));
  return page.render();
}

}  // namespace epistle::cli
