// Reading JSON that somebody else wrote: whatever is wrong with it is an error that names the file and the field.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

namespace epistle {

/// Bounds included.
template <typename Number>
struct JsonRange {
  Number min;
  Number max;
};

/// A value of a document, and where it stands: "record.json: dispatchers[1].period_us". All functions throw
/// kCorruptInput. The document must outlive it.
class JsonField {
 public:
  using Json = nlohmann::ordered_json;

  JsonField(const Json& value, std::string file) : value_(&value), file_(std::move(file)) {}

  [[nodiscard]] const Json& value() const noexcept { return *value_; }
  [[nodiscard]] JsonField at(std::string_view name) const;
  /// Nothing where the object has no such field, or null there.
  [[nodiscard]] std::optional<JsonField> find(std::string_view name) const;
  [[nodiscard]] std::vector<JsonField> items() const;
  [[nodiscard]] std::string text() const;
  [[nodiscard]] bool boolean() const;
  [[nodiscard]] double number(JsonRange<double> range) const;
  [[nodiscard]] std::int64_t integer(JsonRange<std::int64_t> range) const;

  /// Throws that this field is wrong: "FILE: field NAME REASON".
  [[noreturn]] void fail(std::string_view reason) const;

 private:
  [[nodiscard]] JsonField inner(const Json& value, std::string path) const;
  void require(bool is_right, std::string_view kind) const;

  const Json* value_;
  std::string file_;
  std::string path_;  ///< empty = the document
};

/// Reads a document of moderate size and depth. Throws kNotFound, or kCorruptInput with the line of what is wrong.
[[nodiscard]] nlohmann::ordered_json read_json_file(const std::string& path);
/// The same of a text; `name` stands for the file.
[[nodiscard]] nlohmann::ordered_json parse_json(std::string_view text, const std::string& name);

}  // namespace epistle
