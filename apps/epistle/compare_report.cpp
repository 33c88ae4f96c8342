#include "compare_report.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <optional>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "compare_record.hpp"
#include "page_parts.hpp"
#include "report/format.hpp"
#include "report/table.hpp"

namespace epistle::cli {
namespace {

constexpr std::size_t kMaxRoundsShown = 200;  // of a chart

const std::vector<std::string>& shown_phases() {
  static const std::vector<std::string> phases = {"layout", "dispatch", "combine", "round_trip"};
  return phases;
}

const Json* find_entry(const Json& list, const std::string& name) {
  const auto found =
      std::find_if(list.begin(), list.end(), [&](const Json& one) { return one.at("dispatcher") == name; });
  return found == list.end() ? nullptr : &*found;
}

std::optional<double> median_of(const Json& document, const std::string& name, const std::string& phase) {
  for (const Json& result : document.at("results")) {
    if (result.at("dispatcher") == name && result.at("phase") == phase) return number_of(result.at("median_us"));
  }
  return std::nullopt;
}

/// "slower: 1.220 x direct (+2.10 us to +2.34 us)"
std::string comparison_text(const Json& comparison) {
  const std::string against = plain_text(comparison.at("against"));
  const std::string ratio = fmt::format("{:.3f} x {}", comparison.at("ratio").get<double>(), against);
  const std::string verdict = plain_text(comparison.at("verdict"));
  if (comparison.at("difference_us").is_null()) return fmt::format("{}: {}", verdict, ratio);
  const auto signed_us = [](double value) {
    return fmt::format("{}{}", value < 0 ? "-" : "+", format_us(std::fabs(value)));
  };
  return fmt::format("{}: {} ({} to {})", verdict, ratio, signed_us(comparison.at("low_us").get<double>()),
                     signed_us(comparison.at("high_us").get<double>()));
}

std::string verdict_text(const Json& document, const Compared& one) {
  if (!one.reason.empty()) return "unavailable: " + one.reason;
  const Json* const comparison = find_entry(document.at("comparisons"), one.name);
  return comparison == nullptr ? "-" : comparison_text(*comparison);
}

const Json& memory_of(const Json& document, const Compared& one) {
  return find_entry(document.at("dispatchers"), one.name)->at("memory").at("bytes");
}

std::vector<Column> columns() {
  std::vector<Column> all = {{"dispatcher"}};
  for (const char* const name : {"p50", "p90", "p95", "p99"}) all.push_back({name, Align::kRight});
  for (const std::string& phase : shown_phases()) all.push_back({phase, Align::kRight});
  all.push_back({"memory", Align::kRight});
  all.push_back({"against"});
  return all;
}

std::vector<html::Cell> cells_of(const Json& document, const Compared& one) {
  std::vector<html::Cell> cells = {{.text = one.name}};
  const bool measured = one.reason.empty();
  for (const double value : {one.summary_us.median, one.summary_us.p90, one.summary_us.p95, one.summary_us.p99}) {
    cells.push_back(us_cell(measured ? Json(value) : Json(nullptr)));
  }
  for (const std::string& phase : shown_phases()) {
    const auto value = median_of(document, one.name, phase);
    cells.push_back(us_cell(value && measured ? Json(*value) : Json(nullptr)));
  }
  cells.push_back(bytes_cell(measured ? memory_of(document, one) : Json(nullptr)));
  cells.push_back({.text = verdict_text(document, one)});
  return cells;
}

std::string what_is_shown(const Json& document) {
  if (document.contains("records")) return fmt::format("{} stored records", document.at("records").size());
  const Json& shape = document.at("stack").at("shape");
  return fmt::format("{} {} on {}: hidden {}, {} experts, top-{}, {}, {}, {} sizing; routing {}, hash {}",
                     plain_text(shape.at("ranks")), plain_text(shape.at("group")), plain_text(shape.at("device")),
                     plain_text(shape.at("hidden")), plain_text(shape.at("num_experts")), plain_text(shape.at("top_k")),
                     plain_text(shape.at("dtype")), plain_text(shape.at("layout")), plain_text(shape.at("sizing")),
                     plain_text(document.at("stack").at("routing").at("routing")),
                     plain_text(document.at("routing_hash")));
}

bool has_packages(const Json& document) {
  const Json& list = document.at("dispatchers");
  return std::any_of(list.begin(), list.end(), [](const Json& one) { return one.contains("package"); });
}

std::string method_text(const Json& document) {
  if (document.contains("records"))
    return "Rounds of different runs are not pairs: intervals are those of two samples.";
  const std::string packages =
      has_packages(document) ? " Packages of others ran in two blocks of rounds, before and after the dispatchers of "
                               "Epistle: their intervals are those of two samples."
                             : "";
  return fmt::format(
      "{} rounds after {} to warm up; in each, every dispatcher in turn does its phases and a chain of {} pairs.{}",
      plain_text(document.at("rounds")), plain_text(document.at("warmups")), plain_text(document.at("pairs_per_round")),
      packages);
}

constexpr const char* kLegend =
    "p50 to p99: period of a chained pair (a dispatch that reads its routing anew, and a combine) on the slowest "
    "rank.\n"
    "Phases: medians of single calls. Against: the ratio of medians, and where the true difference of periods lies "
    "with\n"
    "95% confidence.";

html::NoteBlock compared_note(const Json& document) {
  const std::string verification = plain_text(document.at("verification"));
  if (verification == "off") return {.text = "Outputs were not compared with the reference (--no-verify)."};
  if (verification == "failed") {
    return {.text = "An output differs from the reference, so the times mean nothing: " +
                    plain_text(document.at("mismatch")),
            .tone = html::Tone::kBad};
  }
  const std::string packages =
      has_packages(document) ? " Of packages of others, received rows were compared bit by bit, and sums within 8 "
                               "units of the last place of bf16."
                             : "";
  return {.text =
              "Every output bit of every dispatcher of Epistle equals the reference, before and after it was "
              "timed." +
              packages,
          .tone = html::Tone::kGood};
}

html::ChartBlock percentiles_chart(const std::vector<Compared>& measured) {
  html::ChartBlock chart{.kind = html::ChartKind::kBars,
                         .title = "Period of a chained pair",
                         .summary = "Percentiles of the slowest rank, over all rounds.",
                         .label_title = "dispatcher",
                         .value_title = "microseconds",
                         .labels = {},
                         .series = {{"p50", {}}, {"p90", {}}, {"p95", {}}, {"p99", {}}}};
  for (const Compared& one : measured) {
    const Summary& time_us = one.summary_us;
    const double values[] = {time_us.median, time_us.p90, time_us.p95, time_us.p99};
    chart.labels.push_back(one.name);
    for (std::size_t idx = 0; idx < std::size(values); ++idx) chart.series[idx].values.emplace_back(values[idx]);
  }
  return chart;
}

/// The first ones, so that drift and outliers show.
html::ChartBlock rounds_chart(const std::vector<Compared>& measured) {
  std::size_t num_rounds = 0;
  for (const Compared& one : measured) num_rounds = std::max(num_rounds, one.period_us.size());
  const std::size_t num_shown = std::min(num_rounds, kMaxRoundsShown);
  html::ChartBlock chart{.kind = html::ChartKind::kLine,
                         .title = "Period by round",
                         .summary = fmt::format("The first {} of {} rounds.", num_shown, num_rounds),
                         .label_title = "round",
                         .value_title = "microseconds",
                         .labels = {},
                         .series = {}};
  for (std::size_t round = 0; round < num_shown; ++round) chart.labels.push_back(fmt::format("{}", round + 1));
  for (const Compared& one : measured) {
    html::Series series{.name = one.name, .values = std::vector<std::optional<double>>(num_shown)};
    for (std::size_t round = 0; round < std::min(num_shown, one.period_us.size()); ++round) {
      series.values[round] = one.period_us[round];
    }
    chart.series.push_back(std::move(series));
  }
  return chart;
}

html::ChartBlock memory_chart(const Json& document, const std::vector<Compared>& measured) {
  constexpr double kMiB = 1 << 20;
  html::ChartBlock chart{.kind = html::ChartKind::kBars,
                         .title = "Memory",
                         .summary = "What all ranks of a dispatcher take together.",
                         .label_title = "dispatcher",
                         .value_title = "MiB",
                         .labels = {},
                         .series = {{"memory", {}}}};
  for (const Compared& one : measured) {
    chart.labels.push_back(one.name);
    const auto bytes = number_of(memory_of(document, one));
    chart.series[0].values.push_back(bytes ? std::optional(*bytes / kMiB) : std::nullopt);
  }
  return chart;
}

}  // namespace

std::string render_compare_table(const Json& document) {
  std::string text = what_is_shown(document) + "\n" + method_text(document) + "\n\n";
  Table table(columns());
  for (const Compared& one : read_compared(JsonField(document, "this comparison"))) {
    std::vector<std::string> cells;
    for (html::Cell& cell : cells_of(document, one)) cells.push_back(std::move(cell.text));
    table.add_row(std::move(cells));
  }
  text += table.render() + kLegend + "\n";
  if (!document.contains("records")) return text + compared_note(document).text + "\n";
  for (const Json& difference : document.at("stack_differences")) {
    text += fmt::format("different stacks: {}\n", plain_text(difference));
  }
  return text;
}

std::string render_compare_page(const Json& document) {
  html::Page page("epistle compare", what_is_shown(document));
  if (document.contains("records")) {
    for (const Json& difference : document.at("stack_differences")) {
      page.add({.text = "Different stacks: " + plain_text(difference), .tone = html::Tone::kBad});
    }
  } else {
    page.add(compared_note(document));
  }
  const std::vector<Compared> all = read_compared(JsonField(document, "this comparison"));
  html::TableBlock table{.title = "Dispatchers", .columns = columns(), .rows = {}, .note = kLegend};
  std::vector<Compared> measured;
  for (const Compared& one : all) {
    table.rows.push_back(cells_of(document, one));
    if (one.reason.empty()) measured.push_back(one);
  }
  page.add_section("Periods");
  page.add({.text = method_text(document)});
  page.add(std::move(table));
  page.add(percentiles_chart(measured));
  page.add(rounds_chart(measured));
  page.add_section("Phases");
  page.add(phase_stack(document.at("results")));
  page.add_section("Load and memory");
  page.add(load_chart(document.at("load")));
  page.add(memory_chart(document, measured));
  if (document.contains("records")) {
    html::Facts facts;
    for (const Json& record : document.at("records")) add_facts(facts, plain_text(record.at("file")), record);
    page.add_facts("Records", facts);
  }
  add_origin(page, document);
  page.set_record(json_text(document));
  return page.render();
}

}  // namespace epistle::cli
