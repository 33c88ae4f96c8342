// Pages: what they contain, and what a browser makes of them.
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "epistle/error.hpp"

#include "report/html/markup.hpp"
#include "report/html/page.hpp"
#include "support/browser.hpp"
#include "support/temp_dir.hpp"

namespace epistle::test {
namespace {

using html::ChartKind;

html::ChartBlock chart_of(ChartKind kind) {
  return {
      .kind = kind,
      .title = "A chart </script><b>",
      .summary = "What it shows.",
      .label_title = "tokens",
      .value_title = "us",
      .labels = {"1", "8", "64"},
      .series = {{.name = "direct", .values = {1.5, std::nullopt, 3.25}}, {.name = "alltoall", .values = {2, 3, 4}}}};
}

html::Page page_of_all_kinds() {
  html::Page page("Title & <more>", "below it");
  page.add_facts("Stack", {{"gpu", "none"}, {"compiler", "a \"quoted\" one"}});
  page.add({.text = "A note.", .tone = html::Tone::kBad});
  page.add_section("Charts");
  for (const ChartKind kind :
       {ChartKind::kLine, ChartKind::kBars, ChartKind::kStackedBars, ChartKind::kHistogram, ChartKind::kHeatMap}) {
    page.add(chart_of(kind));
  }
  html::ChartBlock band = chart_of(ChartKind::kLine);
  band.series[1].low = {1, 2, 3};
  band.series[1].high = {3, 4, 5};
  band.logarithmic = true;
  page.add(band);
  html::ChartBlock empty = chart_of(ChartKind::kHeatMap);
  empty.labels = {};
  empty.series = {};
  page.add(empty);
  page.set_record(R"({"text": "</script><!--", "number": 0.1})");
  return page;
}

TEST(HtmlPage, EscapesWhatItIsGiven) {
  EXPECT_EQ(html::escape("a<b> & \"c\""), "a&lt;b&gt; &amp; &quot;c&quot;");
  EXPECT_EQ(html::in_script(R"({"a": "</script><!--"})"), R"({"a": "\u003c/script>\u003c!--"})");
}

TEST(HtmlPage, RejectsRowsAndSeriesOfAnotherLength) {
  html::Page page("a", "b");
  EXPECT_THROW(page.add({.title = "t", .columns = {{"a"}, {"b"}}, .rows = {{{.text = "1"}}}}), Error);
  html::ChartBlock chart = chart_of(ChartKind::kBars);
  chart.series[0].values.pop_back();
  EXPECT_THROW(page.add(chart), Error);
  chart = chart_of(ChartKind::kLine);
  chart.series[0].low = {1, 2, 3};
  EXPECT_THROW(page.add(chart), Error);
}

TEST(HtmlPage, KeepsNumbersInFullBesideTheirText) {
  const std::string markup = html::table_markup({.title = "t",
                                                 .columns = {{"a"}, {"b", Align::kRight}},
                                                 .rows = {{{.text = "x"}, {.text = "0.3", .number = 0.1 + 0.2}}}});
  EXPECT_NE(markup.find("<th scope=\"row\">x</th>"), std::string::npos) << markup;
  EXPECT_NE(markup.find("data-value=\"0.30000000000000004\">0.3</td>"), std::string::npos) << markup;
}

TEST(HtmlPage, PutsValuesIntoRangesThatCoverThem) {
  const html::Histogram narrow = html::make_histogram({3, 3, 5}, 10);
  EXPECT_EQ(narrow.labels, (std::vector<std::string>{"3", "4", "5"}));
  EXPECT_EQ(narrow.counts, (std::vector<std::optional<double>>{2, 0, 1}));
  const html::Histogram wide = html::make_histogram({0, 9, 10, 19}, 2);
  EXPECT_EQ(wide.labels, (std::vector<std::string>{"0 to 9", "10 to 19"}));
  EXPECT_EQ(wide.counts, (std::vector<std::optional<double>>{2, 2}));
  EXPECT_TRUE(html::make_histogram({}, 4).labels.empty());
}

TEST(HtmlPage, LoadsNothing) {
  if (!html::missing_charts().empty()) GTEST_SKIP() << html::missing_charts();
  const std::string page = page_of_all_kinds().render();
  EXPECT_EQ(page.find("src="), std::string::npos);
  EXPECT_EQ(page.find("<link"), std::string::npos);
  EXPECT_NE(page.find("default-src 'none'"), std::string::npos);
}

TEST(HtmlPage, IsDrawnByABrowser) {
  if (!html::missing_charts().empty()) GTEST_SKIP() << html::missing_charts();
  const TempDir dir;
  std::string reason;
  const auto found = open_page(dir.write("page.html", page_of_all_kinds().render()), reason);
  if (!found) GTEST_SKIP() << reason;
  expect_sound_page(*found, 7);
  EXPECT_TRUE(shows_number(*found, 3.25));
  EXPECT_EQ(found->at("light").at(0).at("series").at(0).at("values").dump(), "[1.5,null,3.25]");
  EXPECT_EQ(found->at("light").at(4).at("series").at(1).at("values").dump(), "[2,3,4]");
  EXPECT_EQ(found->at("readings").dump(), R"(["1, direct: 1.5","8, direct: no value","8, alltoall: 3",""])");
}

}  // namespace
}  // namespace epistle::test
