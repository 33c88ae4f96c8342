// Fields of a Hugging Face config.json, which publishers name differently for the same thing.
#pragma once

#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/json_field.hpp"

namespace epistle {

class ConfigFields {
 public:
  using Names = std::initializer_list<const char*>;

  explicit ConfigFields(JsonField object) : object_(std::move(object)) {}

  /// The first of `names` that is there and not null. A list of numbers, one for every layer, gives its largest.
  [[nodiscard]] std::optional<double> number(Names names) const;
  /// Likewise, but not below 1.
  [[nodiscard]] double need(Names names) const;
  /// A list of numbers or of truth values, or a text of numbers with commas; nothing where the field is a number.
  [[nodiscard]] std::optional<std::vector<double>> numbers(std::string_view name) const;
  /// A list of texts; nothing where the field is a text.
  [[nodiscard]] std::optional<std::vector<std::string>> texts(std::string_view name) const;
  [[nodiscard]] std::string text(std::string_view name) const;  ///< empty where there is none
  /// Whether `model_type` starts with `family`.
  [[nodiscard]] bool is_of(std::string_view family) const;
  [[nodiscard]] bool flag(std::string_view name, bool otherwise) const;
  [[nodiscard]] std::optional<ConfigFields> part(std::string_view name) const;  ///< an object inside
  [[noreturn]] void fail(std::string_view name, std::string_view reason) const;

 private:
  JsonField object_;
};

/// Python writes infinities and NaN into JSON, which has no such numbers: they become null.
[[nodiscard]] std::string without_infinities(std::string_view text);

}  // namespace epistle
