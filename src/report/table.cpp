#include "report/table.hpp"

#include <algorithm>
#include <string_view>
#include <utility>

#include <fmt/format.h>

#include "epistle/error.hpp"

#include "report/format.hpp"

namespace epistle {
namespace {

constexpr std::string_view kSeparator = "  ";

}  // namespace

Table::Table(std::vector<Column> columns) : columns_(std::move(columns)) {}

void Table::add_row(std::vector<std::string> cells) {
  if (cells.size() != columns_.size()) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("a row of {} cells for a table of {} columns; give one cell per column", cells.size(),
                            columns_.size()));
  }
  rows_.push_back(std::move(cells));
}

std::string Table::render() const {
  std::vector<std::size_t> widths;
  widths.reserve(columns_.size());
  for (std::size_t i = 0; i < columns_.size(); ++i) {
    std::size_t width = display_width(columns_[i].header);
    for (const auto& row : rows_) width = std::max(width, display_width(row[i]));
    widths.push_back(width);
  }

  std::string text;
  const auto append_line = [&](const auto& cell) {
    std::string line;
    for (std::size_t i = 0; i < columns_.size(); ++i) {
      if (i > 0) line += kSeparator;
      const std::string& content = cell(i);
      const std::string padding(widths[i] - display_width(content), ' ');
      line += columns_[i].align == Align::kRight ? padding + content : content + padding;
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + '\n';
  };

  std::vector<std::string> rules;
  rules.reserve(widths.size());
  for (const std::size_t width : widths) rules.emplace_back(width, '-');
  append_line([&](std::size_t i) -> const std::string& { return columns_[i].header; });
  append_line([&](std::size_t i) -> const std::string& { return rules[i]; });
  for (const auto& row : rows_) append_line([&](std::size_t i) -> const std::string& { return row[i]; });
  return text;
}

}  // namespace epistle
