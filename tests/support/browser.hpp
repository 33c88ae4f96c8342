// What a headless browser finds in a page; see tests/support/page_in_browser.py.
#pragma once

#include <optional>
#include <set>
#include <string>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "support/python.hpp"
#include "support/subprocess.hpp"

namespace epistle::test {

/// Why the command that ran makes no pages, or nothing where it does, or failed for another reason.
[[nodiscard]] inline std::string lack_of_pages(const CommandResult& result) {
  return result.exit_code == 5 && result.err.find("Chart.js") != std::string::npos ? result.err : std::string();
}

/// Nothing, and `reason`, where this machine cannot open pages.
[[nodiscard]] inline std::optional<nlohmann::json> open_page(const std::string& path, std::string& reason) {
  constexpr int kNoBrowser = 77;
  if (!has_python()) {
    reason = "python3 is not installed";
    return std::nullopt;
  }
  const CommandResult result = run_command({"python3", EPISTLE_SOURCE_DIR "/tests/support/page_in_browser.py", path});
  if (result.exit_code == kNoBrowser) {
    reason = result.err;
    return std::nullopt;
  }
  EXPECT_EQ(result.exit_code, 0) << result.describe();
  return nlohmann::json::parse(result.out, nullptr, false);
}

/// Every chart is drawn in every style, in the colours of that style; nothing was loaded and nothing complained.
inline void expect_sound_page(const nlohmann::json& found, std::size_t num_charts) {
  constexpr int kColoursOfFrame = 20;  // smooth edges of letters and lines have many
  EXPECT_TRUE(found.at("console").empty()) << found.at("console").dump(1);
  EXPECT_EQ(found.at("requests").size(), 1U) << found.at("requests").dump(1);
  EXPECT_EQ(found.at("folded_on_paper"), 0);
  EXPECT_EQ(found.at("unnamed"), 0);
  std::set<std::string> text_colours;
  for (const char* const style : {"light", "dark", "paper"}) {
    ASSERT_EQ(found.at(style).size(), num_charts) << style;
    for (const nlohmann::json& chart : found.at(style)) {
      EXPECT_GT(chart.at("num_colours"), kColoursOfFrame) << style;
      text_colours.insert(chart.at("text_colour"));
    }
  }
  EXPECT_EQ(text_colours.size(), 3U) << "light, dark and paper differ";
}

/// True where a cell of a table holds exactly this number.
[[nodiscard]] inline bool shows_number(const nlohmann::json& found, double number) {
  for (const nlohmann::json& cell : found.at("cells")) {
    if (cell.get<double>() == number) return true;
  }
  return false;
}

}  // namespace epistle::test
