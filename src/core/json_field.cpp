#include "core/json_field.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include <fmt/format.h>

#include "epistle/error.hpp"

#include "core/growing_memory.hpp"
#include "core/whole_file.hpp"

namespace epistle {
namespace {

constexpr int kMaxDepth = 32;  // functions that go through a document call themselves
constexpr std::size_t kMaxShown = 40;

[[noreturn]] void throw_corrupt(const std::string& file, std::string_view reason) {
  throw Error(ErrorCode::kCorruptInput, fmt::format("{}: {}", file, reason));
}

/// What a document may cost that somebody else wrote, whatever its bytes: looks at every value as it is read.
class JsonLimits {
 public:
  using Json = nlohmann::ordered_json;
  using Event = Json::parse_event_t;

  explicit JsonLimits(const std::string& name) : name_(&name) {}

  bool operator()(int depth, Event event, const Json& parsed) {
    if (depth > kMaxDepth) throw_corrupt(*name_, fmt::format("it is nested more than {} deep", kMaxDepth));
    const auto level = static_cast<std::size_t>(depth);
    if (event == Event::object_start) num_keys_[level + 1] = 0;
    if (event == Event::key) count_key(num_keys_[level]);
    // The value in its list, at the worst while that moves, and what it has elsewhere.
    constexpr std::int64_t kBytesOfValue = 64;
    const bool is_text = (event == Event::key || event == Event::value) && parsed.is_string();
    const std::size_t text_bytes = is_text ? parsed.get_ref<const std::string&>().size() : 0;
    memory_.add(kBytesOfValue + static_cast<std::int64_t>(text_bytes));
    return true;
  }

 private:
  /// A key is looked for among those before it in its object.
  void count_key(std::int64_t& num_keys) {
    constexpr std::int64_t kMaxLooks = std::int64_t{1} << 27;  // an object of 16,000 keys, some seconds
    num_looks_ += ++num_keys;
    if (num_looks_ > kMaxLooks) {
      throw_corrupt(*name_, fmt::format("it has objects of too many keys, one of {} or more", num_keys));
    }
  }

  const std::string* name_;
  std::array<std::int64_t, kMaxDepth + 2> num_keys_{};
  std::int64_t num_looks_ = 0;
  GrowingMemory memory_{"the values of a JSON document", "give a smaller one, or more memory"};
};

std::string shown(const JsonField::Json& value) {
  if (value.is_object() || value.is_array()) return fmt::format("{} with {} entries", value.type_name(), value.size());
  const std::string text = value.dump(-1, ' ', true, JsonField::Json::error_handler_t::replace);
  return text.size() <= kMaxShown ? text : text.substr(0, kMaxShown) + "...";
}

}  // namespace

JsonField JsonField::inner(const Json& value, std::string path) const {
  JsonField field(value, file_);
  field.path_ = std::move(path);
  return field;
}

void JsonField::fail(std::string_view reason) const {
  if (path_.empty()) throw_corrupt(file_, fmt::format("the document {}", reason));
  throw_corrupt(file_, fmt::format("field {} {}", path_, reason));
}

void JsonField::require(bool is_right, std::string_view kind) const {
  if (!is_right) fail(fmt::format("is {}, not {}", shown(*value_), kind));
}

std::optional<JsonField> JsonField::find(std::string_view name) const {
  require(value_->is_object(), "an object");
  const auto found = value_->find(std::string(name));
  if (found == value_->end() || found->is_null()) return std::nullopt;
  return inner(*found, path_.empty() ? std::string(name) : fmt::format("{}.{}", path_, name));
}

JsonField JsonField::at(std::string_view name) const {
  if (auto field = find(name)) return *field;
  fail(fmt::format("has no field '{}'", name));
}

std::vector<JsonField> JsonField::items() const {
  require(value_->is_array(), "a list");
  std::vector<JsonField> fields;
  fields.reserve(value_->size());
  for (const Json& item : *value_) fields.push_back(inner(item, fmt::format("{}[{}]", path_, fields.size())));
  return fields;
}

std::string JsonField::text() const {
  require(value_->is_string(), "a text");
  return value_->get<std::string>();
}

bool JsonField::boolean() const {
  require(value_->is_boolean(), "true or false");
  return value_->get<bool>();
}

double JsonField::number(JsonRange<double> range) const {
  require(value_->is_number(), "a number");
  const auto number = value_->get<double>();
  if (!std::isfinite(number) || number < range.min || number > range.max) {
    fail(fmt::format("is {}, not from {} to {}", shown(*value_), range.min, range.max));
  }
  return number;
}

std::int64_t JsonField::integer(JsonRange<std::int64_t> range) const {
  require(value_->is_number_integer(), "a whole number");
  const bool too_large = value_->is_number_unsigned() && value_->get<std::uint64_t>() > std::uint64_t{INT64_MAX};
  const std::int64_t number = too_large ? range.min : value_->get<std::int64_t>();
  if (too_large || number < range.min || number > range.max) {
    fail(fmt::format("is {}, not from {} to {}", shown(*value_), range.min, range.max));
  }
  return number;
}

nlohmann::ordered_json parse_json(std::string_view text, const std::string& name) {
  using Json = nlohmann::ordered_json;
  JsonLimits limits(name);
  const auto look = [&limits](int depth, Json::parse_event_t event, const Json& parsed) {
    return limits(depth, event, parsed);
  };
  try {
    return Json::parse(text.begin(), text.end(), look);
  } catch (const Json::parse_error& error) {
    const auto* const end = text.begin() + static_cast<std::ptrdiff_t>(std::min(error.byte, text.size()));
    throw_corrupt(name, fmt::format("line {} is not JSON", 1 + std::count(text.begin(), end, '\n')));
  } catch (const Json::out_of_range&) {
    throw_corrupt(name, "a number in it is too large; those up to 1.8e308 can be read");
  }
}

nlohmann::ordered_json read_json_file(const std::string& path) { return parse_json(read_whole_file(path), path); }

}  // namespace epistle
