#include "report/html/markup.hpp"

#include <cmath>
#include <optional>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

namespace epistle::html {
namespace {

using Json = nlohmann::ordered_json;

std::string cell_markup(const Cell& cell, Align align, bool names_row) {
  std::string attributes;
  if (align == Align::kRight) attributes += " class=\"number\"";
  if (cell.number && std::isfinite(*cell.number)) attributes += fmt::format(" data-value=\"{}\"", *cell.number);
  return names_row ? fmt::format("<th scope=\"row\"{}>{}</th>", attributes, escape(cell.text))
                   : fmt::format("<td{}>{}</td>", attributes, escape(cell.text));
}

Cell value_cell(const std::optional<double>& value) {
  if (!value || !std::isfinite(*value)) return {.text = "-"};
  constexpr double kFromHere = 1000.0;  // digits behind the point say nothing more
  const bool whole = *value == std::floor(*value) || std::fabs(*value) >= kFromHere;
  return {.text = whole ? fmt::format("{:.0f}", *value) : fmt::format("{:.4g}", *value), .number = value};
}

/// One row per label, one column per series and end of a band.
TableBlock numbers_of(const ChartBlock& chart) {
  TableBlock table{.title = fmt::format("Numbers of the chart: {}", chart.title), .columns = {}, .rows = {}};
  table.columns.push_back({chart.label_title, Align::kLeft});
  for (const Series& series : chart.series) {
    table.columns.push_back({series.name, Align::kRight});
    if (series.low.empty()) continue;
    table.columns.push_back({series.name + ", from", Align::kRight});
    table.columns.push_back({series.name + ", to", Align::kRight});
  }
  for (std::size_t idx = 0; idx < chart.labels.size(); ++idx) {
    std::vector<Cell> row = {{.text = chart.labels[idx]}};
    for (const Series& series : chart.series) {
      row.push_back(value_cell(series.values[idx]));
      if (series.low.empty()) continue;
      row.push_back(value_cell(series.low[idx]));
      row.push_back(value_cell(series.high[idx]));
    }
    table.rows.push_back(std::move(row));
  }
  return table;
}

std::string_view kind_name(ChartKind kind) noexcept {
  switch (kind) {
    case ChartKind::kLine:
      return "line";
    case ChartKind::kBars:
      return "bars";
    case ChartKind::kStackedBars:
      return "stacked";
    case ChartKind::kHistogram:
      return "histogram";
    case ChartKind::kHeatMap:
      return "heat";
  }
  return "unknown";
}

Json values_json(const std::vector<std::optional<double>>& values) {
  Json list = Json::array();
  for (const auto& value : values) list.push_back(value && std::isfinite(*value) ? Json(*value) : Json(nullptr));
  return list;
}

}  // namespace

std::string escape(std::string_view text) {
  std::string escaped;
  escaped.reserve(text.size());
  for (const char c : text) {
    switch (c) {
      case '&':
        escaped += "&amp;";
        break;
      case '<':
        escaped += "&lt;";
        break;
      case '>':
        escaped += "&gt;";
        break;
      case '"':
        escaped += "&quot;";
        break;
      case '\0':  // no character of HTML
        escaped += "\xef\xbf\xbd";
        break;
      default:
        escaped += c;
    }
  }
  return escaped;
}

std::string table_markup(const TableBlock& table) {
  std::string text = fmt::format(
      "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{0}\">\n<table>\n<caption>{0}</caption>\n"
      "<thead><tr>",
      escape(table.title));
  for (const Column& column : table.columns) {
    text += fmt::format("<th scope=\"col\"{}>{}</th>", column.align == Align::kRight ? " class=\"number\"" : "",
                        escape(column.header));
  }
  text += "</tr></thead>\n<tbody>\n";
  for (const auto& row : table.rows) {
    text += "<tr>";
    for (std::size_t idx = 0; idx < row.size(); ++idx) {
      text += cell_markup(row[idx], table.columns[idx].align, idx == 0);
    }
    text += "</tr>\n";
  }
  text += "</tbody>\n</table>\n</div>\n";
  if (!table.note.empty()) text += fmt::format("<p class=\"remark\">{}</p>\n", escape(table.note));
  return text;
}

std::string note_markup(const NoteBlock& note) {
  const std::string_view tone = note.tone == Tone::kGood ? " good" : note.tone == Tone::kBad ? " bad" : "";
  return fmt::format("<p class=\"note{}\">{}</p>\n", tone, escape(note.text));
}

std::string chart_markup(const ChartBlock& chart, std::size_t chart_idx) {
  return fmt::format(
      "<figure class=\"chart\" data-chart=\"{}\">\n<figcaption>{}</figcaption>\n<p class=\"remark\">{}</p>\n"
      "<div class=\"plot\"><canvas tabindex=\"0\" role=\"img\" aria-label=\"{}. Arrow keys go through the values; they "
      "are in the table below, too.\"></canvas></div>\n<p class=\"reading\" aria-live=\"polite\"></p>\n"
      "<details><summary>Numbers of this chart</summary>\n{}</details>\n</figure>\n",
      chart_idx, escape(chart.title), escape(chart.summary), escape(chart.title + ": " + chart.summary),
      table_markup(numbers_of(chart)));
}

std::string charts_json(const std::vector<const ChartBlock*>& charts) {
  Json list = Json::array();
  for (const ChartBlock* const chart : charts) {
    Json series = Json::array();
    for (const Series& one : chart->series) {
      series.push_back({{"name", one.name}, {"values", values_json(one.values)}});
      if (one.low.empty()) continue;
      series.back()["low"] = values_json(one.low);
      series.back()["high"] = values_json(one.high);
    }
    list.push_back({{"kind", kind_name(chart->kind)},
                    {"label_title", chart->label_title},
                    {"value_title", chart->value_title},
                    {"logarithmic", chart->logarithmic},
                    {"labels", chart->labels},
                    {"series", series}});
  }
  return in_script(list.dump(-1, ' ', false, Json::error_handler_t::replace));
}

std::string in_script(std::string json) {
  // In JSON '<' stands in strings only. Nothing else can end a script element or begin a comment in it.
  std::string text;
  text.reserve(json.size());
  for (const char c : json) {
    if (c == '<') {
      text += "\\u003c";
    } else {
      text += c;
    }
  }
  return text;
}

}  // namespace epistle::html
