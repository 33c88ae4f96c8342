// The bytes of a plain value, as it travels between processes of one program.
#pragma once

#include <cstring>
#include <optional>
#include <string_view>
#include <type_traits>

namespace epistle {

/// Refers to the value.
template <typename Value>
[[nodiscard]] std::string_view object_bytes(const Value& value) noexcept {
  static_assert(std::is_trivially_copyable_v<Value>);
  return {reinterpret_cast<const char*>(&value), sizeof(value)};
}

/// The value that has these bytes; nothing where their number is another.
template <typename Value>
[[nodiscard]] std::optional<Value> object_of(std::string_view bytes) {
  static_assert(std::is_trivially_copyable_v<Value>);
  Value value;
  if (bytes.size() != sizeof(value)) return std::nullopt;
  std::memcpy(&value, bytes.data(), sizeof(value));
  return value;
}

}  // namespace epistle
