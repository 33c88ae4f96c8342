#include "balance/load_file.hpp"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string_view>
#include <system_error>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "epistle/error.hpp"

#include "balance/npy.hpp"
#include "core/growing_memory.hpp"
#include "core/json_field.hpp"
#include "core/whole_file.hpp"

namespace epistle::balance {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::size_t kMaxFileBytes = std::size_t{1} << 30;

[[noreturn]] void fail(const std::string& path, const std::string& reason) {
  throw Error(ErrorCode::kCorruptInput, fmt::format("loads '{}': {}", path, reason));
}

std::string read_bytes(const std::string& path) {
  const std::string file_name = path == "-" ? "/dev/stdin" : path;
  std::error_code error;
  if (std::filesystem::is_directory(file_name, error)) {
    throw Error(ErrorCode::kNotFound, fmt::format("cannot read the loads '{}': it is a directory", path));
  }
  std::ifstream file(file_name, std::ios::binary);
  if (!file) {
    throw Error(ErrorCode::kNotFound, fmt::format("cannot read the loads '{}': {}; give a .json, .csv or .npy file",
                                                  path, std::generic_category().message(errno)));
  }
  return read_whole_stream(file, fmt::format("loads '{}'", path), kMaxFileBytes);
}

// ---- CSV ------------------------------------------------------------------------------------------------------------

std::string_view trim(std::string_view text) {
  const auto is_blank = [](char character) { return character == ' ' || character == '\t' || character == '\r'; };
  while (!text.empty() && is_blank(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_blank(text.back())) text.remove_suffix(1);
  return text;
}

std::optional<double> parse_cell(std::string_view cell) {
  double number = 0.0;
  const auto [last, error] = std::from_chars(cell.data(), cell.data() + cell.size(), number);
  if (error != std::errc() || last != cell.data() + cell.size()) return std::nullopt;
  return number;
}

struct CsvRow {
  std::vector<double> numbers;
  std::size_t num_cells = 0;  // more than there are numbers: some are none
};

CsvRow parse_row(std::string_view line) {
  CsvRow row;
  for (std::size_t begin = 0; begin <= line.size(); ++row.num_cells) {
    const std::size_t end = std::min(line.find(',', begin), line.size());
    if (const auto number = parse_cell(trim(line.substr(begin, end - begin)))) row.numbers.push_back(*number);
    begin = end + 1;
  }
  return row;
}

LoadFile parse_csv(const std::string& path, std::string_view text) {
  constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";
  if (text.starts_with(kByteOrderMark)) text.remove_prefix(kByteOrderMark.size());
  LoadFile file;
  GrowingMemory memory("the loads of a file", "give fewer rows, or more memory");
  bool is_first = true;
  std::int64_t line_number = 0;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = trim(text.substr(begin, end - begin));
    begin = end + 1;
    ++line_number;
    if (line.empty()) continue;
    CsvRow row = parse_row(line);
    // The first line may have names; one that has any number is loads that went wrong.
    const bool is_head = is_first && row.numbers.empty();
    is_first = false;
    if (is_head) continue;
    if (row.numbers.size() != row.num_cells) {
      fail(path, fmt::format("line {} is no row of numbers separated by commas", line_number));
    }
    constexpr std::int64_t kBytesOfRow = 64;  // its place in the list, and what the allocator adds
    memory.add(kBytesOfRow + static_cast<std::int64_t>(row.numbers.capacity() * sizeof(double)));
    file.loads.push_back(std::move(row.numbers));
  }
  return file;
}

// ---- npy ------------------------------------------------------------------------------------------------------------

LoadFile parse_npy_loads(const std::string& path, std::string_view bytes) {
  NpyArray array = parse_npy(bytes, path);
  std::vector<std::int64_t> shape = array.shape;
  if (shape.empty() || shape.size() > 3) {
    fail(path, fmt::format("an array of {} axes, expected experts, layers by experts, or windows by layers by experts",
                           shape.size()));
  }
  while (shape.size() < 3) shape.insert(shape.begin(), 1);
  LoadFile file;
  const auto num_layers = static_cast<std::size_t>(shape[1]);
  const auto num_experts = static_cast<std::size_t>(shape[2]);
  file.loads.assign(num_layers, std::vector<double>(num_experts, 0.0));
  for (std::size_t idx = 0; idx < array.values.size(); ++idx) {
    file.loads[idx / num_experts % num_layers][idx % num_experts] += array.values[idx];
  }
  return file;
}

// ---- JSON -----------------------------------------------------------------------------------------------------------

class JsonLoads {
 public:
  JsonLoads(const std::string& path, const Json& document) : path_(&path), document_(&document) {}

  [[nodiscard]] LoadFile parse() const {
    if (!document_->is_object()) fail(*path_, "not one JSON object with \"loads\"");
    LoadFile file;
    for (const Json& layer : layers_of("loads", field("loads"))) file.loads.push_back(numbers(layer));
    if (const Json* const slots = find("slots")) file.slots = one_or_more("slots", *slots);
    if (const Json* const ranks = find("ranks")) file.num_ranks = integer("ranks", *ranks);
    if (const Json* const domains = find("domains")) file.domains = one_or_more("domains", *domains);
    if (const Json* const current = find("current")) {
      for (const Json& layer : layers_of("current", *current)) file.current.push_back(slots_of(layer));
    }
    return file;
  }

 private:
  [[nodiscard]] const Json* find(const char* name) const {
    const auto found = document_->find(name);
    return found == document_->end() || found->is_null() ? nullptr : &*found;
  }
  [[nodiscard]] const Json& field(const char* name) const {
    const Json* const found = find(name);
    if (found == nullptr) fail(*path_, fmt::format("no \"{}\"", name));
    return *found;
  }

  /// The layers of a list; a list of numbers is one layer.
  [[nodiscard]] Json layers_of(const char* name, const Json& value) const {
    if (!value.is_array() || value.empty()) fail(*path_, fmt::format("\"{}\" is no list of layers", name));
    return value.front().is_array() ? value : Json::array({value});
  }

  [[nodiscard]] std::vector<double> numbers(const Json& layer) const {
    std::vector<double> result;
    if (!layer.is_array()) fail(*path_, "a layer of \"loads\" is no list of numbers");
    for (const Json& value : layer) {
      if (!value.is_number()) fail(*path_, "\"loads\" holds something that is no number");
      result.push_back(value.get<double>());
    }
    return result;
  }

  [[nodiscard]] std::int32_t integer(const char* name, const Json& value) const {
    constexpr std::int64_t kMax = std::numeric_limits<std::int32_t>::max();
    if (!value.is_number_integer() || value.get<std::int64_t>() < -1 || value.get<std::int64_t>() > kMax) {
      fail(*path_, fmt::format("\"{}\" holds {}, expected a whole number", name, value.dump()));
    }
    return value.get<std::int32_t>();
  }

  [[nodiscard]] std::vector<std::int32_t> one_or_more(const char* name, const Json& value) const {
    std::vector<std::int32_t> result;
    if (!value.is_array()) return {integer(name, value)};
    for (const Json& number : value) result.push_back(integer(name, number));
    return result;
  }

  /// Slots of a layer, ranks in order; they may stand in a list for every rank.
  [[nodiscard]] std::vector<std::int32_t> slots_of(const Json& layer) const {
    std::vector<std::int32_t> slots;
    for (const Json& value : layer) {
      if (value.is_array()) {
        for (const Json& expert : value) slots.push_back(integer("current", expert));
      } else {
        slots.push_back(integer("current", value));
      }
    }
    return slots;
  }

  const std::string* path_;
  const Json* document_;
};

bool is_json(std::string_view bytes) {
  const std::size_t first = bytes.find_first_not_of(" \t\r\n");
  return first != std::string_view::npos && (bytes[first] == '{' || bytes[first] == '[');
}

/// What is neither .npy nor JSON and has a name that says nothing: standard input, mostly.
LoadFile parse_unnamed(const std::string& path, const std::string& bytes) {
  if (bytes.starts_with("PK")) {
    fail(path,
         "an archive, as torch.save and numpy.savez write it; give what recorders save by way of `python -m "
         "epistle.loads FILE | epistle balance --loads -`, arrays as .npy");
  }
  const std::string_view first = trim(std::string_view(bytes).substr(0, bytes.find('\n')));
  const std::string_view cell = trim(first.substr(0, first.find(',')));
  if (first.find(',') == std::string_view::npos || !parse_cell(cell)) {
    fail(path, "neither JSON nor .npy nor rows of numbers; a CSV file with a heading needs the ending .csv");
  }
  return parse_csv(path, bytes);
}

void check(const std::string& path, const LoadFile& file) {
  if (file.loads.empty()) fail(path, "no loads");
  for (std::size_t layer = 0; layer < file.loads.size(); ++layer) {
    const std::vector<double>& loads = file.loads[layer];
    if (loads.empty() || loads.size() != file.loads.front().size()) {
      fail(path, loads.empty() ? fmt::format("layer {} has no experts, expected at least 1", layer)
                               : fmt::format("layer {} has {} experts, expected {} as the first", layer, loads.size(),
                                             file.loads.front().size()));
    }
    const auto bad =
        std::find_if(loads.begin(), loads.end(), [](double load) { return !std::isfinite(load) || load < 0.0; });
    if (bad != loads.end()) {
      fail(path,
           fmt::format("layer {}, expert {}: a load of {}, expected 0 or more", layer, bad - loads.begin(), *bad));
    }
  }
  if (!file.current.empty() && file.current.size() != 1 && file.current.size() != file.loads.size()) {
    fail(path, fmt::format("\"current\" has {} layers, expected {}, as \"loads\", or 1 for all", file.current.size(),
                           file.loads.size()));
  }
}

}  // namespace

LoadFile read_load_file(const std::string& path) {
  const std::string bytes = read_bytes(path);
  LoadFile file;
  if (path.ends_with(".csv")) {
    file = parse_csv(path, bytes);
  } else if (path.ends_with(".npy") || is_npy(bytes)) {
    file = parse_npy_loads(path, bytes);
  } else if (path.ends_with(".json") || is_json(bytes)) {
    file = JsonLoads(path, parse_json(bytes, fmt::format("loads '{}'", path))).parse();
  } else {
    file = parse_unnamed(path, bytes);
  }
  check(path, file);
  return file;
}

}  // namespace epistle::balance
