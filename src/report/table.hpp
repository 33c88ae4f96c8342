// Tables for a terminal: columns two spaces apart, a rule below the headers, nothing else.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace epistle {

enum class Align : std::int32_t { kLeft, kRight };

struct Column {
  std::string header;
  Align align = Align::kLeft;
};

class Table {
 public:
  explicit Table(std::vector<Column> columns);

  /// Throws kInvalidArgument unless there is one cell per column.
  void add_row(std::vector<std::string> cells);

  /// All lines, each ended by a newline and without trailing spaces.
  [[nodiscard]] std::string render() const;

 private:
  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace epistle
