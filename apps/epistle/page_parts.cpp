#include "page_parts.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "report/format.hpp"

namespace epistle::cli {
namespace {

template <typename Format>
html::Cell number_cell(const Json& value, const Format& format) {
  const auto number = number_of(value);
  if (!number) return {.text = "-"};
  return {.text = format(*number), .number = number};
}

std::string whole(double value, std::string (*format)(std::int64_t)) {
  return format(static_cast<std::int64_t>(value));
}

/// The different values of a field, in the order in which they appear.
std::vector<std::string> distinct(const Json& results, const std::string& field) {
  std::vector<std::string> values;
  for (const Json& result : results) {
    std::string value = plain_text(result.at(field));
    if (std::find(values.begin(), values.end(), value) == values.end()) values.push_back(std::move(value));
  }
  return values;
}

std::optional<double> find_value(const Json& results, std::string_view dispatcher, std::string_view phase,
                                 const std::string& field) {
  for (const Json& result : results) {
    if (result.at("dispatcher") == dispatcher && result.at("phase") == phase) return number_of(result.at(field));
  }
  return std::nullopt;
}

}  // namespace

std::optional<double> number_of(const Json& value) {
  if (!value.is_number()) return std::nullopt;
  return value.get<double>();
}

html::Cell us_cell(const Json& value) { return number_cell(value, format_us); }
html::Cell rate_cell(const Json& value) { return number_cell(value, format_rate); }
html::Cell percent_cell(const Json& fraction) { return number_cell(fraction, format_percent); }
html::Cell bytes_cell(const Json& value) {
  return number_cell(value, [](double number) { return whole(number, format_bytes); });
}
html::Cell count_cell(const Json& value) {
  return number_cell(value, [](double number) { return whole(number, format_count); });
}

std::string plain_text(const Json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_null()) return "-";
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

void add_facts(html::Facts& facts, const std::string& name, const Json& value) {
  if (!value.is_object()) {
    facts.emplace_back(name, plain_text(value));
    return;
  }
  for (const auto& [inner, field] : value.items()) {
    add_facts(facts, name.empty() ? inner : fmt::format("{}.{}", name, inner), field);
  }
}

void add_origin(html::Page& page, const Json& record) {
  page.add_section("Where this comes from");
  html::Facts facts;
  for (const char* const name : {"command", "commit", "date"}) {
    if (record.contains(name)) add_facts(facts, name, record.at(name));
  }
  page.add_facts("Origin", facts);
  facts.clear();
  add_facts(facts, "", record.at("stack"));
  page.add_facts("Stack", facts);
}

html::ChartBlock load_chart(const Json& load) {
  const Json& experts = load.at("experts");
  html::ChartBlock chart{.kind = html::ChartKind::kHistogram,
                         .title = "Load of the experts",
                         .summary = fmt::format("How many experts get how many assignments: from {} to {} each.",
                                                plain_text(experts.at("min")), plain_text(experts.at("max"))),
                         .label_title = "assignments of an expert",
                         .value_title = "experts",
                         .labels = experts.at("assignments").get<std::vector<std::string>>(),
                         .series = {}};
  html::Series series{.name = "experts", .values = {}};
  for (const Json& count : experts.at("num_experts")) series.values.push_back(number_of(count));
  chart.series.push_back(std::move(series));
  return chart;
}

html::ChartBlock phase_chart(const Json& results, const PhaseChart& wanted) {
  html::ChartBlock chart{.kind = wanted.kind,
                         .title = wanted.title,
                         .summary = wanted.summary,
                         .label_title = "phase",
                         .value_title = wanted.value_title,
                         .labels = distinct(results, "phase"),
                         .series = {}};
  for (const std::string& dispatcher : distinct(results, "dispatcher")) {
    html::Series series{.name = dispatcher, .values = {}};
    for (const std::string& phase : chart.labels) {
      auto value = find_value(results, dispatcher, phase, wanted.field);
      if (value) *value *= wanted.scale;
      series.values.push_back(value);
    }
    chart.series.push_back(std::move(series));
  }
  return chart;
}

html::ChartBlock phase_stack(const Json& results) {
  html::ChartBlock chart{
      .kind = html::ChartKind::kStackedBars,
      .title = "Parts of a round trip",
      .summary = "Medians of layout, dispatch and combine, measured one by one, on top of each other.",
      .label_title = "dispatcher",
      .value_title = "microseconds",
      .labels = distinct(results, "dispatcher"),
      .series = {}};
  for (const char* const phase : {"layout", "dispatch", "combine"}) {
    html::Series series{.name = phase, .values = {}};
    for (const std::string& dispatcher : chart.labels) {
      series.values.push_back(find_value(results, dispatcher, phase, "median_us"));
    }
    chart.series.push_back(std::move(series));
  }
  return chart;
}

}  // namespace epistle::cli
