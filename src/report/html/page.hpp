// A report as one HTML file: tables, charts and notes in the order in which they are added. It opens without a network,
// follows the light or dark style of the reader, prints, and can be used and read without a mouse. Charts are drawn by
// Chart.js, which the build puts into the library; beside each one lies a table of its numbers.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "report/table.hpp"

namespace epistle::html {

/// What the reader sees and, where it is a number, the number in full.
struct Cell {
  std::string text;
  std::optional<double> number = {};
};

struct TableBlock {
  std::string title;
  std::vector<Column> columns;
  std::vector<std::vector<Cell>> rows;  ///< one cell per column; the first names the row
  std::string note = {};                ///< below the table
};

enum class ChartKind : std::int32_t {
  kLine,         ///< a band from `low` to `high` lies behind a line that has them
  kBars,         ///< the bars of one label side by side
  kStackedBars,  ///< on top of each other
  kHistogram,    ///< bars without gaps: the labels are ranges
  kHeatMap,      ///< a row of cells for every series
};

/// One value per label of its chart; nothing where there is none.
struct Series {
  std::string name;
  std::vector<std::optional<double>> values;
  std::vector<std::optional<double>> low = {};  ///< kLine; empty = no band
  std::vector<std::optional<double>> high = {};
};

struct ChartBlock {
  ChartKind kind = ChartKind::kLine;
  std::string title;
  std::string summary;  ///< a sentence that says what the chart shows
  std::string label_title;
  std::string value_title;  ///< with the unit
  std::vector<std::string> labels;
  std::vector<Series> series;
  bool logarithmic = false;  ///< the axis of values; all of them must be positive then
};

enum class Tone : std::int32_t { kPlain, kGood, kBad };

struct NoteBlock {
  std::string text;
  Tone tone = Tone::kPlain;
};

/// Names and values, as of the machine and the versions that a measurement was made with.
using Facts = std::vector<std::pair<std::string, std::string>>;

class Page {
 public:
  Page(std::string title, std::string subtitle);

  /// What follows stands under this heading.
  void add_section(std::string title);
  void add_facts(std::string title, const Facts& facts);
  /// Throw kInvalidArgument unless there is one cell per column, or one value per label.
  void add(TableBlock table);
  void add(ChartBlock chart);
  void add(NoteBlock note);
  /// The JSON document that the report shows. It can be saved from the page.
  void set_record(std::string json) { record_ = std::move(json); }

  /// Throws kUnsupported where missing_charts() says why.
  [[nodiscard]] std::string render() const;

 private:
  struct Section {
    std::string title;
  };
  using Block = std::variant<Section, TableBlock, ChartBlock, NoteBlock>;

  std::string title_;
  std::string subtitle_;
  std::vector<Block> blocks_;
  std::string record_;
};

/// Why this build cannot make pages, and what to do about it; empty where it can.
[[nodiscard]] std::string_view missing_charts() noexcept;

/// A histogram of `values` as the labels and the only series of a chart: `num_bins` equal ranges, each of which holds
/// its lower end. Whole numbers get ranges of whole numbers, and fewer of them where they span less.
struct Histogram {
  std::vector<std::string> labels;
  std::vector<double> lower_ends;
  std::vector<std::optional<double>> counts;
};
[[nodiscard]] Histogram make_histogram(const std::vector<std::int64_t>& values, int num_bins);

}  // namespace epistle::html
