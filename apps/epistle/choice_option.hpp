// Options that take one of a few names.
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "core/reject.hpp"
#include "cost/work.hpp"

namespace epistle::cli {

/// The value of the name `text`. Throws kInvalidArgument with the names there are.
template <typename Value, std::size_t count>
[[nodiscard]] Value choose(std::string_view option, const std::string& text,
                           const std::array<std::pair<std::string_view, Value>, count>& choices) {
  std::string names;
  for (const auto& [name, value] : choices) {
    if (text == name) return value;
    names += (names.empty() ? "" : ", ") + std::string(name);
  }
  epistle::reject(std::string(option) + " is '" + text + "'; it must be one of " + names);
}

/// Without a text: what the model's experts are stored in, where its config says so, or blocks of fp8.
[[nodiscard]] inline ExpertType choose_precision(const std::string& text, std::optional<ExpertType> stored) {
  if (text.empty()) return stored.value_or(ExpertType::kFp8Block);
  using Choice = std::pair<std::string_view, ExpertType>;
  return choose("--precision", text,
                std::array{Choice{"bf16", ExpertType::kBf16}, Choice{"fp8", ExpertType::kFp8},
                           Choice{"fp8_block", ExpertType::kFp8Block}, Choice{"fp4", ExpertType::kFp4}});
}

}  // namespace epistle::cli
