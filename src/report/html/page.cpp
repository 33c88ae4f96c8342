#include "report/html/page.hpp"

#include <algorithm>
#include <cstddef>

#include <fmt/format.h>

#include "epistle/error.hpp"

#include "core/reject.hpp"
#include "report/html/assets.hpp"
#include "report/html/markup.hpp"

namespace epistle::html {
namespace {

// Nothing may be loaded from anywhere: what the page needs is in it.
constexpr std::string_view kPolicy =
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:";

void check_lengths(const ChartBlock& chart) {
  for (const Series& series : chart.series) {
    const bool has_band = !series.low.empty() || !series.high.empty();
    const std::size_t num_labels = chart.labels.size();
    if (series.values.size() == num_labels &&
        (!has_band || (series.low.size() == num_labels && series.high.size() == num_labels))) {
      continue;
    }
    reject(fmt::format("the series '{}' of the chart '{}' has {} values for {} labels; give one per label", series.name,
                       chart.title, series.values.size(), num_labels));
  }
}

}  // namespace

Page::Page(std::string title, std::string subtitle) : title_(std::move(title)), subtitle_(std::move(subtitle)) {}

void Page::add_section(std::string title) { blocks_.emplace_back(Section{std::move(title)}); }

void Page::add_facts(std::string title, const Facts& facts) {
  TableBlock table{.title = std::move(title), .columns = {{"what"}, {"value"}}, .rows = {}};
  for (const auto& [name, value] : facts) table.rows.push_back({{.text = name}, {.text = value}});
  blocks_.emplace_back(std::move(table));
}

void Page::add(TableBlock table) {
  for (const auto& row : table.rows) {
    if (row.size() == table.columns.size()) continue;
    reject(fmt::format("a row of {} cells for a table of {} columns; give one cell per column", row.size(),
                       table.columns.size()));
  }
  blocks_.emplace_back(std::move(table));
}

void Page::add(ChartBlock chart) {
  check_lengths(chart);
  blocks_.emplace_back(std::move(chart));
}

void Page::add(NoteBlock note) { blocks_.emplace_back(std::move(note)); }

std::string Page::render() const {
  if (const std::string_view reason = missing_charts(); !reason.empty()) {
    throw Error(ErrorCode::kUnsupported, std::string(reason));
  }
  std::string body;
  std::vector<const ChartBlock*> charts;
  for (const Block& block : blocks_) {
    if (const auto* const section = std::get_if<Section>(&block)) {
      body += fmt::format("<h2>{}</h2>\n", escape(section->title));
    } else if (const auto* const table = std::get_if<TableBlock>(&block)) {
      body += table_markup(*table);
    } else if (const auto* const chart = std::get_if<ChartBlock>(&block)) {
      body += chart_markup(*chart, charts.size());
      charts.push_back(chart);
    } else {
      body += note_markup(std::get<NoteBlock>(block));
    }
  }
  std::string text = fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<meta name=\"color-scheme\" content=\"light dark\">\n"
      "<meta http-equiv=\"Content-Security-Policy\" content=\"{}\">\n<title>{}</title>\n<style>\n",
      kPolicy, escape(title_));
  text += kPageStyle;
  text += fmt::format(
      "</style>\n</head>\n<body>\n<a class=\"skip\" href=\"#content\">Skip to the content</a>\n<header>\n<h1>{}</h1>\n"
      "<p class=\"subtitle\">{}</p>\n{}</header>\n<main id=\"content\" tabindex=\"-1\">\n",
      escape(title_), escape(subtitle_),
      record_.empty() ? "" : "<p><button type=\"button\" id=\"save-record\">Save the JSON record</button></p>\n");
  text += body;
  text +=
      "</main>\n<noscript><p class=\"note bad\">Charts need JavaScript; their numbers are in the tables.</p>"
      "</noscript>\n<script type=\"application/json\" id=\"charts\">";
  text += charts_json(charts);
  text += "</script>\n";
  if (!record_.empty()) {
    text += "<script type=\"application/json\" id=\"record\">";
    text += in_script(record_);
    text += "</script>\n";
  }
  text += "<script>\n";
  text += kChartLibrary;
  text += "\n</script>\n<script>\n";
  text += kPageScript;
  text += "</script>\n</body>\n</html>";
  return text;
}

std::string_view missing_charts() noexcept {
  if (!kChartLibrary.empty()) return {};
  return "this build has no Chart.js, which draws the charts of reports; install it (Debian: libjs-chart.js, or "
         "scripts/install-deps build; elsewhere name the file with -D EPISTLE_CHART_JS=.../chart.min.js), and "
         "configure "
         "and build again";
}

Histogram make_histogram(const std::vector<std::int64_t>& values, int num_bins) {
  Histogram histogram;
  if (values.empty()) return histogram;
  const auto [least, most] = std::minmax_element(values.begin(), values.end());
  const std::int64_t span = *most - *least + 1;
  const std::int64_t width = (span + num_bins - 1) / num_bins;
  const std::int64_t num_used = (span + width - 1) / width;
  std::vector<std::int64_t> counts(static_cast<std::size_t>(num_used));
  for (const std::int64_t value : values) ++counts[static_cast<std::size_t>((value - *least) / width)];
  for (std::int64_t bin = 0; bin < num_used; ++bin) {
    const std::int64_t from = *least + bin * width;
    histogram.labels.push_back(width == 1 ? fmt::format("{}", from) : fmt::format("{} to {}", from, from + width - 1));
    histogram.lower_ends.push_back(static_cast<double>(from));
    histogram.counts.emplace_back(static_cast<double>(counts[static_cast<std::size_t>(bin)]));
  }
  return histogram;
}

}  // namespace epistle::html
