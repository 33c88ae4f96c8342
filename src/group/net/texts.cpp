#include "group/net/texts.hpp"

#include <cstdint>
#include <cstring>

#include "core/object_bytes.hpp"

namespace epistle {

std::string pack_texts(const std::vector<std::string>& texts) {
  std::string packed;
  for (const std::string& text : texts) {
    const std::uint64_t num_bytes = text.size();
    packed.append(object_bytes(num_bytes)).append(text);
  }
  return packed;
}

std::optional<std::vector<std::string>> unpack_texts(std::string_view packed, std::size_t num_texts) {
  std::vector<std::string> texts;
  while (texts.size() < num_texts) {
    std::uint64_t num_bytes = 0;
    if (packed.size() < sizeof(num_bytes)) return std::nullopt;
    std::memcpy(&num_bytes, packed.data(), sizeof(num_bytes));
    packed.remove_prefix(sizeof(num_bytes));
    if (packed.size() < num_bytes) return std::nullopt;
    texts.emplace_back(packed.substr(0, static_cast<std::size_t>(num_bytes)));
    packed.remove_prefix(static_cast<std::size_t>(num_bytes));
  }
  if (!packed.empty()) return std::nullopt;
  return texts;
}

}  // namespace epistle
