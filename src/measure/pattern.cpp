#include "measure/pattern.hpp"

#include <algorithm>
#include <cstring>

namespace epistle {
namespace {

constexpr std::int64_t kWordBytes = sizeof(std::uint64_t);

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
std::uint64_t scramble(std::uint64_t z) noexcept {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
  return z ^ (z >> 31);
}

constexpr std::uint64_t kGoldenGamma = 0x9e3779b97f4a7c15U;

std::uint64_t start_of(const RowKey& key) noexcept {
  std::uint64_t state = scramble(key.seed + kGoldenGamma);
  state = scramble(state ^ (static_cast<std::uint64_t>(key.stream) << 32 | static_cast<std::uint32_t>(key.rank)));
  return scramble(state + static_cast<std::uint64_t>(key.row) * kGoldenGamma);
}

template <typename Shape>
void fill(const RowKey& key, std::byte* target, std::int64_t num_bytes, const Shape& shape) noexcept {
  std::uint64_t state = start_of(key);
  for (std::int64_t offset = 0; offset < num_bytes; offset += kWordBytes) {
    state += kGoldenGamma;
    const std::uint64_t word = shape(scramble(state));
    std::memcpy(target + offset, &word, static_cast<std::size_t>(std::min(kWordBytes, num_bytes - offset)));
  }
}

/// Random sign, mantissa and the low two exponent bits; the rest of the exponent puts the value into [1/8, 2).
struct FieldMasks {
  std::uint64_t random;
  std::uint64_t fixed;
};

FieldMasks masks_of(DType dtype) noexcept {
  switch (dtype) {
    case DType::kBf16:
      return {0x81ff81ff81ff81ffU, 0x3e003e003e003e00U};
    case DType::kFp16:
      return {0x8fff8fff8fff8fffU, 0x3000300030003000U};
    default:
      return {0x81ffffff81ffffffU, 0x3e0000003e000000U};
  }
}

}  // namespace

void fill_bytes(const RowKey& key, std::byte* target, std::int64_t num_bytes) noexcept {
  fill(key, target, num_bytes, [](std::uint64_t word) { return word; });
}

void fill_values(const RowKey& key, DType dtype, std::byte* target, std::int64_t num_bytes) noexcept {
  const FieldMasks masks = masks_of(dtype);
  fill(key, target, num_bytes, [&](std::uint64_t word) { return (word & masks.random) | masks.fixed; });
}

}  // namespace epistle
