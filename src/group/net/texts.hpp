// Texts packed into one, each with its length in front.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace epistle {

[[nodiscard]] std::string pack_texts(const std::vector<std::string>& texts);
/// Nothing where `packed` is not what pack_texts makes of `num_texts`.
[[nodiscard]] std::optional<std::vector<std::string>> unpack_texts(std::string_view packed, std::size_t num_texts);

}  // namespace epistle
