#include "bench_page.hpp"

#include <cstddef>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "page_parts.hpp"
#include "report/format.hpp"

namespace epistle::cli {
namespace {

constexpr double kPercent = 100.0;

std::string subtitle(const Json& config) {
  return fmt::format("{}: hidden {}, {} experts, top-{}; {} {} on {}, {} tokens each at most; {}, {}, routing {}",
                     config.at("model").is_null() ? "custom shape" : plain_text(config.at("model")),
                     plain_text(config.at("hidden")), plain_text(config.at("num_experts")),
                     plain_text(config.at("top_k")), plain_text(config.at("ranks")), plain_text(config.at("group")),
                     plain_text(config.at("device")), plain_text(config.at("tokens")), plain_text(config.at("dtype")),
                     plain_text(config.at("layout")), plain_text(config.at("routing")));
}

html::NoteBlock verification_note(const Json& record) {
  const std::string verification = plain_text(record.at("verification"));
  if (verification == "off") return {.text = "Outputs were not compared with the reference (--no-verify)."};
  if (verification == "failed") {
    return {.text = fmt::format("An output differs from the reference: {}", plain_text(record.at("mismatch"))),
            .tone = html::Tone::kBad};
  }
  return {.text = fmt::format("Every output bit equals the reference ({} compared).",
                              format_bytes(record.at("verified_bytes").get<std::int64_t>())),
          .tone = html::Tone::kGood};
}

std::string_view limit_field(const Json& record) {
  return record.at("gpu").is_null() ? "limit_fraction" : "link_fraction";
}

/// Columns of what a row is of, of the quantiles of its times, and of what else there is.
std::vector<Column> quantile_columns(std::vector<Column> of, const std::vector<Column>& rest) {
  for (const char* const quantile : {"median", "p10", "p90", "p99"}) of.push_back({quantile, Align::kRight});
  of.insert(of.end(), rest.begin(), rest.end());
  return of;
}

/// A row of such a table; `times` has the quantiles.
std::vector<html::Cell> quantile_row(std::vector<html::Cell> of, const Json& times,
                                     const std::vector<html::Cell>& rest) {
  for (const char* const field : {"median_us", "p10_us", "p90_us", "p99_us"}) of.push_back(us_cell(times.at(field)));
  of.insert(of.end(), rest.begin(), rest.end());
  return of;
}

html::TableBlock times_table(const Json& record) {
  html::TableBlock table{.title = "Times by phase",
                         .columns = quantile_columns({{"dispatcher"}, {"phase"}}, {{"algorithm bytes", Align::kRight},
                                                                                   {"rate", Align::kRight},
                                                                                   {"wire bytes", Align::kRight},
                                                                                   {"wire rate", Align::kRight},
                                                                                   {"of limit", Align::kRight}}),
                         .rows = {},
                         .note =
                             "Of the slowest rank. Bytes and rates are per rank (means). Algorithm bytes: rows "
                             "received x row size, local rows included. Wire bytes: what crossed between ranks."};
  for (const Json& result : record.at("results")) {
    table.rows.push_back(
        quantile_row({{.text = plain_text(result.at("dispatcher"))}, {.text = plain_text(result.at("phase"))}}, result,
                     {bytes_cell(result.at("algorithm_bytes")), rate_cell(result.at("algorithm_bytes_per_s")),
                      bytes_cell(result.at("wire_bytes")), rate_cell(result.at("wire_bytes_per_s")),
                      percent_cell(result.at(std::string(limit_field(record))))}));
  }
  return table;
}

/// What is in a row, as a person says it.
std::string pairs_text(const Json& pairs, bool chains) {
  if (!chains) return "replays of a graph of one pair";
  return fmt::format("chain of {} pairs{}", plain_text(pairs.at("pairs")),
                     pairs.at("in_graph") == true ? ", one graph" : "");
}

void add_pairs(html::Page& page, const Json& record) {
  html::TableBlock table{.title = "Pairs in a row",
                         .columns = quantile_columns({{"dispatcher"}, {"in a row"}}, {{"samples", Align::kRight}}),
                         .rows = {},
                         .note =
                             "Times of one pair on the slowest rank: a dispatch that reads its routing anew, and a "
                             "combine, with no host wait in between."};
  html::ChartBlock chart{.kind = html::ChartKind::kBars,
                         .title = "Period of pairs in a row",
                         .summary = "Median and 99th percentile of the time of one pair.",
                         .label_title = "dispatcher",
                         .value_title = "microseconds",
                         .labels = {},
                         .series = {{.name = "median", .values = {}}, {.name = "p99", .values = {}}}};
  for (const auto& [name, is_chain] : {std::pair{"chain", true}, std::pair{"replays", false}}) {
    if (record.at(name).is_null()) continue;
    for (const Json& pairs : record.at(name)) {
      const std::string dispatcher = plain_text(pairs.at("dispatcher"));
      const std::string what = pairs_text(pairs, is_chain);
      table.rows.push_back(
          quantile_row({{.text = dispatcher}, {.text = what}}, pairs, {count_cell(pairs.at("samples"))}));
      chart.labels.push_back(fmt::format("{}, {}", dispatcher, what));
      chart.series[0].values.push_back(number_of(pairs.at("median_us")));
      chart.series[1].values.push_back(number_of(pairs.at("p99_us")));
    }
  }
  if (table.rows.empty()) return;
  page.add_section("Pairs in a row");
  page.add(std::move(table));
  page.add(std::move(chart));
}

void add_host_calls(html::Page& page, const Json& record) {
  if (record.at("host_calls").is_null()) return;
  html::TableBlock table{.title = "Dispatches by the host's clock",
                         .columns = quantile_columns({{"dispatcher"}}, {{"samples", Align::kRight}}),
                         .rows = {},
                         .note =
                             "On the slowest rank: from the call, with expert ids, until its host knows that the "
                             "rows are there."};
  for (const Json& calls : record.at("host_calls")) {
    table.rows.push_back(
        quantile_row({{.text = plain_text(calls.at("dispatcher"))}}, calls, {count_cell(calls.at("samples"))}));
  }
  page.add(std::move(table));
}

html::TableBlock buffers_table(const Json& record) {
  html::TableBlock table{.title = "Buffers",
                         .columns = {{"dispatcher"}, {"on the largest rank", Align::kRight}, {"as predicted"}},
                         .rows = {}};
  for (const Json& buffers : record.at("buffers")) {
    table.rows.push_back({{.text = plain_text(buffers.at("dispatcher"))},
                          bytes_cell(buffers.at("max_buffer_bytes")),
                          {.text = buffers.at("as_predicted") == true ? "to the byte" : "NO"}});
  }
  return table;
}

}  // namespace

std::string render_bench_page(const Json& record) {
  const Json& results = record.at("results");
  html::Page page("epistle bench", subtitle(record.at("config")));
  page.add(verification_note(record));
  page.add_section("Times");
  page.add(times_table(record));
  page.add(phase_chart(results, {.title = "Time by phase",
                                 .summary = "Medians of the slowest rank.",
                                 .field = "median_us",
                                 .value_title = "microseconds"}));
  page.add(phase_stack(results));
  page.add(phase_chart(results, {.title = "Share of the limit",
                                 .summary = fmt::format("Against {} that were measured in the same run.",
                                                        format_rate(record.at("limit_bytes_per_s").get<double>())),
                                 .field = std::string(limit_field(record)),
                                 .scale = kPercent,
                                 .value_title = "percent of the limit"}));
  add_host_calls(page, record);
  add_pairs(page, record);
  page.add_section("Load and memory");
  page.add(load_chart(record.at("load")));
  page.add(buffers_table(record));
  add_origin(page, record);
  page.set_record(json_text(record));
  return page.render();
}

}  // namespace epistle::cli
