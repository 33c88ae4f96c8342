// Pieces of the reports of several commands, made from their records.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "json_text.hpp"
#include "report/html/page.hpp"

namespace epistle::cli {

// Cells with a number of a record, as people read it; "-" where there is none.

[[nodiscard]] html::Cell us_cell(const Json& value);
[[nodiscard]] html::Cell bytes_cell(const Json& value);
[[nodiscard]] html::Cell rate_cell(const Json& value);
[[nodiscard]] html::Cell percent_cell(const Json& fraction);
[[nodiscard]] html::Cell count_cell(const Json& value);

/// A value of a record for a chart.
[[nodiscard]] std::optional<double> number_of(const Json& value);

/// Adds the objects and lists of `value` as lines "name.inner: value".
void add_facts(html::Facts& facts, const std::string& name, const Json& value);

/// The text of a value, without quotes.
[[nodiscard]] std::string plain_text(const Json& value);

/// The last part of a report: where the record comes from and what it was measured on.
void add_origin(html::Page& page, const Json& record);

/// How many assignments the experts get.
[[nodiscard]] html::ChartBlock load_chart(const Json& load);

/// One bar per phase for every dispatcher of the record's `results`: the field times `scale`.
struct PhaseChart {
  html::ChartKind kind = html::ChartKind::kBars;
  std::string title;
  std::string summary;
  std::string field;
  double scale = 1.0;
  std::string value_title;
};
[[nodiscard]] html::ChartBlock phase_chart(const Json& results, const PhaseChart& wanted);
/// The phases that follow each other in a round trip, on top of each other.
[[nodiscard]] html::ChartBlock phase_stack(const Json& results);

}  // namespace epistle::cli
