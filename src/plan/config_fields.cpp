#include "plan/config_fields.hpp"

#include <algorithm>
#include <array>
#include <charconv>

#include <fmt/format.h>

namespace epistle {
namespace {

constexpr double kMaxSize = 1e7;  // of any width or count in a config

/// Publishers write -1 for "none".
bool is_none(const JsonField& field) { return field.value().is_number() && field.value().get<double>() == -1.0; }

double size_of(const JsonField& field) { return is_none(field) ? 0.0 : field.number({.min = 0, .max = kMaxSize}); }

std::vector<double> numbers_of_text(const JsonField& field, const std::string& text) {
  std::vector<double> values;
  const char* begin = text.data();
  const char* const end = begin + text.size();
  while (begin != end) {
    double value = 0.0;
    const auto [stop, error] = std::from_chars(begin, end, value);
    if (error != std::errc() || (stop != end && *stop != ',')) {
      field.fail(fmt::format("is '{}', not numbers with commas", text));
    }
    values.push_back(value);
    begin = stop == end ? end : stop + 1;
  }
  return values;
}

}  // namespace

std::optional<double> ConfigFields::number(Names names) const {
  for (const char* const name : names) {
    const auto field = object_.find(name);
    if (!field || is_none(*field)) continue;
    if (!field->value().is_array()) return size_of(*field);
    double largest = 0.0;
    for (const JsonField& item : field->items()) largest = std::max(largest, size_of(item));
    return largest;
  }
  return std::nullopt;
}

double ConfigFields::need(Names names) const {
  const auto value = number(names);
  if (!value || *value < 1) {
    fail(*names.begin(), "is missing or 0, as are its other names; is it the config.json of a model with experts?");
  }
  return *value;
}

std::optional<std::vector<double>> ConfigFields::numbers(std::string_view name) const {
  const auto field = object_.find(name);
  if (!field) return std::nullopt;
  if (field->value().is_string()) return numbers_of_text(*field, field->text());
  if (!field->value().is_array()) return std::nullopt;
  std::vector<double> values;
  for (const JsonField& item : field->items()) {
    values.push_back(item.value().is_boolean() ? static_cast<double>(item.boolean()) : size_of(item));
  }
  return values;
}

std::optional<std::vector<std::string>> ConfigFields::texts(std::string_view name) const {
  const auto field = object_.find(name);
  if (!field || !field->value().is_array()) return std::nullopt;
  std::vector<std::string> values;
  for (const JsonField& item : field->items()) values.push_back(item.text());
  return values;
}

std::string ConfigFields::text(std::string_view name) const {
  const auto field = object_.find(name);
  return field && field->value().is_string() ? field->text() : std::string();
}

bool ConfigFields::is_of(std::string_view family) const { return text("model_type").starts_with(family); }

bool ConfigFields::flag(std::string_view name, bool otherwise) const {
  const auto field = object_.find(name);
  return field ? field->boolean() : otherwise;
}

std::optional<ConfigFields> ConfigFields::part(std::string_view name) const {
  const auto field = object_.find(name);
  if (!field || !field->value().is_object()) return std::nullopt;
  return ConfigFields(*field);
}

void ConfigFields::fail(std::string_view name, std::string_view reason) const {
  if (const auto field = object_.find(name)) field->fail(reason);
  object_.fail(fmt::format("is not usable: {} {}", name, reason));
}

std::string without_infinities(std::string_view text) {
  constexpr std::array<std::string_view, 3> kNoNumbers = {"-Infinity", "Infinity", "NaN"};
  std::string result;
  bool quoted = false;
  while (!text.empty()) {
    const auto* const found = std::find_if(kNoNumbers.begin(), kNoNumbers.end(),
                                           [&](std::string_view word) { return text.starts_with(word); });
    if (!quoted && found != kNoNumbers.end()) {
      result += "null";
      text.remove_prefix(found->size());
      continue;
    }
    const std::size_t length = text[0] == '\\' && text.size() > 1 ? 2 : 1;
    if (text[0] == '"') quoted = !quoted;
    result += text.substr(0, length);
    text.remove_prefix(length);
  }
  return result;
}

}  // namespace epistle
