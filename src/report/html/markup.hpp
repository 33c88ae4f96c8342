// The pieces that a page is put together from, as HTML.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "report/html/page.hpp"

namespace epistle::html {

/// `text` as the content of an element or of an attribute in double quotes.
[[nodiscard]] std::string escape(std::string_view text);

[[nodiscard]] std::string table_markup(const TableBlock& table);
[[nodiscard]] std::string note_markup(const NoteBlock& note);
/// The frame of the chart with that number, its table included; the script draws into it.
[[nodiscard]] std::string chart_markup(const ChartBlock& chart, std::size_t chart_idx);

/// What the script draws: JSON that can stand in a script element.
[[nodiscard]] std::string charts_json(const std::vector<const ChartBlock*>& charts);

/// A JSON text so that it can stand in a script element.
[[nodiscard]] std::string in_script(std::string json);

}  // namespace epistle::html
