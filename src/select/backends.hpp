// The dispatchers that a selection knows, by the names that --assume takes.
#pragma once

#include <span>
#include <string_view>

namespace epistle {

struct SelectBackend {
  std::string_view name;
  std::string_view aliases;  ///< separated by commas
  std::string_view title;
  bool always_there;          ///< needs nothing but the engine's own collectives
  std::string_view package;   ///< what has to be installed
  std::string_view megatron;  ///< value of Megatron's flex backend option; empty = there is none
  std::string_view fix;       ///< how to make it available
};

[[nodiscard]] std::span<const SelectBackend> select_backends() noexcept;

/// By name or alias, ignoring case. Throws kNotFound with the names there are.
[[nodiscard]] const SelectBackend& find_backend(std::string_view name);

}  // namespace epistle
