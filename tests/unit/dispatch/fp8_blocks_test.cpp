// Rows that become fp8: the arithmetic of the dispatchers against that of the oracle, and both against what is written
// down; the vectorised loop on every instruction set of this processor.
#include "layout/fp8_blocks.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "core/numeric.hpp"
#include "dispatch/host/engine/quantise_kernels.hpp"
#include "dispatch/host/engine/row_kernels.hpp"
#include "dispatch/reference/quantise.hpp"
#include "measure/verify.hpp"
#include "support/scenario.hpp"

namespace epistle {
namespace {

using testing::mix;

constexpr std::uint32_t kNumBf16 = 1U << 16;

struct Format {
  ScaleFormat scales = ScaleFormat::kFp32;
  bool powers_of_two = false;
};
constexpr std::array<Format, 3> kFormats = {
    {{ScaleFormat::kFp32, false}, {ScaleFormat::kFp32, true}, {ScaleFormat::kUe8m0, true}}};

/// What a row becomes.
struct Quantised {
  std::vector<std::byte> row;
  std::vector<std::byte> scales;

  bool operator==(const Quantised&) const = default;
};

ResolvedConfig config_of(const Format& format, std::int64_t hidden) {
  DispatcherConfig config;
  config.hidden = hidden;
  config.num_experts = 1;
  config.top_k = 1;
  config.wire = Fp8Blocks{.scales = format.scales, .powers_of_two = format.powers_of_two};
  return resolve_config(config, 1);
}

Quantised room_for(const Format& format, std::size_t hidden) {
  const auto elements = static_cast<std::int64_t>(hidden);
  const auto scale_bytes = static_cast<std::size_t>(fp8::scale_row_bytes(elements, format.scales));
  return {std::vector<std::byte>(hidden, std::byte{0xd7}), std::vector<std::byte>(scale_bytes, std::byte{0xd7})};
}

Quantised by_oracle(const Format& format, const std::vector<std::uint16_t>& row) {
  Quantised result = room_for(format, row.size());
  reference::quantise_row(config_of(format, static_cast<std::int64_t>(row.size())),
                          reinterpret_cast<const std::byte*>(row.data()), result.row.data(), result.scales.data());
  return result;
}

Quantised by_kernel(const Format& format, const std::byte* row, std::size_t hidden) {
  Quantised result = room_for(format, hidden);
  host::quantise_row({.source = row,
                      .hidden = static_cast<std::int64_t>(hidden),
                      .format = format.scales,
                      .powers_of_two = format.powers_of_two,
                      .row = result.row.data(),
                      .scales = result.scales.data()});
  return result;
}

std::vector<std::uint16_t> bf16_row(const std::vector<float>& values) {
  std::vector<std::uint16_t> row;
  for (const float value : values) row.push_back(numeric::fp32_to_bf16(value));
  return row;
}

float scale_at(const Quantised& quantised, std::size_t block) {
  float scale = 0.0F;
  std::memcpy(&scale, quantised.scales.data() + block * sizeof(scale), sizeof(scale));
  return scale;
}

// ---- Elements -------------------------------------------------------------------------------------------------------

TEST(Fp8Elements, AreThoseOfTheTableForEveryBf16AndManyFactors) {
  const std::array<float, 7> factors = {1.0F, 0.5F, 448.0F / 3.0F, 1.0F / 7.0F, 4.48e6F, 0x1p-127F, 0.0F};
  for (const float factor : factors) {
    for (std::uint32_t bits = 0; bits < kNumBf16; ++bits) {
      const float product = numeric::bf16_to_fp32(static_cast<std::uint16_t>(bits)) * factor;
      ASSERT_EQ(fp8::to_e4m3(product), reference::nearest_e4m3(product)) << product;
    }
  }
}

TEST(Fp8Elements, RoundTiesToEven) {
  for (std::uint8_t bits = 0; bits + 1 < fp8::kNanBits; ++bits) {
    const float low = numeric::fp8_e4m3_to_fp32(bits);
    const float high = numeric::fp8_e4m3_to_fp32(static_cast<std::uint8_t>(bits + 1));
    const float middle = (low + high) / 2.0F;
    const auto upper = static_cast<std::uint8_t>(bits + 1);
    EXPECT_EQ(fp8::to_e4m3(low), bits);
    EXPECT_EQ(fp8::to_e4m3(middle), bits % 2 == 0 ? bits : upper) << middle;
    EXPECT_EQ(fp8::to_e4m3(std::nextafter(middle, 0.0F)), bits) << middle;
    EXPECT_EQ(fp8::to_e4m3(std::nextafter(middle, high)), upper) << middle;
    EXPECT_EQ(fp8::to_e4m3(-middle), 0x80U | fp8::to_e4m3(middle)) << middle;
    EXPECT_EQ(reference::nearest_e4m3(middle), fp8::to_e4m3(middle)) << middle;
  }
}

TEST(Fp8Elements, AtTheirEnds) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<std::pair<float, int>> cases = {
      {0.0F, 0x00},       {-0.0F, 0x80},   {0x1p-149F, 0x00}, {-0x1p-149F, 0x80}, {0x1p-10F, 0x00},
      {0x1.1p-10F, 0x01}, {0x1p-9F, 0x01}, {0x1.8p-9F, 0x02}, {-0x1p-6F, 0x88},   {448.0F, 0x7e},
      {464.0F, 0x7e},     {1e30F, 0x7e},   {-449.0F, 0xfe},   {kInfinity, 0x7e},  {-kInfinity, 0xfe},
      {nan, 0x7f},        {-nan, 0x7f},    {1.0F, 0x38},      {-1.0625F, 0xb8},   {1.1875F, 0x3a}};
  for (const auto& [value, bits] : cases) {
    EXPECT_EQ(fp8::to_e4m3(value), bits) << value;
    EXPECT_EQ(reference::nearest_e4m3(value), bits) << value;
  }
}

// ---- Scales ---------------------------------------------------------------------------------------------------------

TEST(Fp8Scales, AreThoseOfTheOracleForEveryLargestMagnitude) {
  for (const Format& format : kFormats) {
    for (std::uint32_t bits = 0; bits <= 0x7f80U; ++bits) {
      const float largest = numeric::bf16_to_fp32(static_cast<std::uint16_t>(bits));
      const fp8::BlockScale scale = fp8::scale_of_block(largest, format.powers_of_two);
      const reference::QuantisedScale expected = reference::scale_of({largest}, format.scales, format.powers_of_two);
      ASSERT_EQ(std::bit_cast<std::uint32_t>(scale.inverse), std::bit_cast<std::uint32_t>(expected.inverse)) << largest;
      if (format.scales == ScaleFormat::kUe8m0) {
        ASSERT_EQ(std::byte{scale.exponent_byte()}, expected.bytes.at(0)) << largest;
      } else {
        ASSERT_EQ(std::memcmp(&scale.scale, expected.bytes.data(), sizeof(scale.scale)), 0) << largest;
      }
    }
  }
}

TEST(Fp8Scales, OfSomeLargestMagnitudes) {
  // Zeros and what is smaller than 1e-4.
  EXPECT_EQ(fp8::scale_of_block(0.0F, false).scale, 1e-4F * (1.0F / 448.0F));
  EXPECT_EQ(fp8::scale_of_block(1e-40F, false).inverse, 448.0F / 1e-4F);
  EXPECT_EQ(fp8::scale_of_block(0.0F, true).scale, 0x1p-22F);
  // At a power of two, and just above.
  EXPECT_EQ(fp8::scale_of_block(448.0F, true).scale, 1.0F);
  EXPECT_EQ(fp8::scale_of_block(448.0F, true).exponent_byte(), 127);
  EXPECT_EQ(fp8::scale_of_block(450.0F, true).scale, 2.0F);
  EXPECT_EQ(fp8::scale_of_block(450.0F, true).inverse, 0.5F);
  EXPECT_EQ(fp8::scale_of_block(224.0F, true).scale, 0.5F);
  // Infinity.
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(fp8::scale_of_block(kInfinity, false).scale, kInfinity);
  EXPECT_EQ(fp8::scale_of_block(kInfinity, false).inverse, 0.0F);
  EXPECT_EQ(fp8::scale_of_block(kInfinity, true).scale, 0x1p127F);
  EXPECT_EQ(fp8::scale_of_block(kInfinity, true).inverse, 0x1p-127F);
  EXPECT_EQ(fp8::scale_of_block(kInfinity, true).exponent_byte(), 254);
}

TEST(Fp8Scales, TakeWholeWords) {
  EXPECT_EQ(fp8::scale_row_bytes(8, ScaleFormat::kFp32), 4);
  EXPECT_EQ(fp8::scale_row_bytes(129, ScaleFormat::kFp32), 8);
  EXPECT_EQ(fp8::scale_row_bytes(8, ScaleFormat::kUe8m0), 4);
  EXPECT_EQ(fp8::scale_row_bytes(512, ScaleFormat::kUe8m0), 4);
  EXPECT_EQ(fp8::scale_row_bytes(520, ScaleFormat::kUe8m0), 8);
  EXPECT_EQ(fp8::scale_row_bytes(7168, ScaleFormat::kUe8m0), 56);
}

// ---- Rows -----------------------------------------------------------------------------------------------------------

TEST(Fp8Rows, AsWrittenDown) {
  // A whole block with 448 in it, and a short one: zeros, NaNs and an infinity do not raise the scale of the first.
  std::vector<float> values(136, 1.0F);
  values[3] = -448.0F;
  values[4] = std::numeric_limits<float>::quiet_NaN();
  values[5] = -0.0F;
  std::fill(values.begin() + 128, values.end(), -2.0F);
  const Quantised quantised = by_oracle({ScaleFormat::kFp32, true}, bf16_row(values));
  EXPECT_EQ(scale_at(quantised, 0), 1.0F);
  EXPECT_EQ(scale_at(quantised, 1), 0x1p-7F);  // 2/448 is above 2^-8
  EXPECT_EQ(quantised.row[0], std::byte{0x38});
  EXPECT_EQ(quantised.row[3], std::byte{0xfe});
  EXPECT_EQ(quantised.row[4], std::byte{0x7f});
  EXPECT_EQ(quantised.row[5], std::byte{0x80});
  EXPECT_EQ(quantised.row[128], std::byte{0xf8});  // -256
  const Quantised exponents = by_oracle({ScaleFormat::kUe8m0, true}, bf16_row(values));
  EXPECT_EQ(exponents.row, quantised.row);
  EXPECT_EQ(exponents.scales, (std::vector<std::byte>{std::byte{127}, std::byte{120}, std::byte{0}, std::byte{0}}));
}

TEST(Fp8Rows, WithAnInfinityKeepWhatIsLeft) {
  std::vector<float> values(16, 1.0F);
  values[2] = -std::numeric_limits<float>::infinity();
  const Quantised plain = by_oracle({ScaleFormat::kFp32, false}, bf16_row(values));
  EXPECT_EQ(plain.row[0], std::byte{0x00});
  EXPECT_EQ(plain.row[2], std::byte{0x7f});  // infinity times 0
  const Quantised powers = by_oracle({ScaleFormat::kFp32, true}, bf16_row(values));
  EXPECT_EQ(powers.row[0], std::byte{0x00});
  EXPECT_EQ(powers.row[2], std::byte{0xfe});
}

class Fp8Kernels : public ::testing::Test {
 protected:
  ~Fp8Kernels() override { host::use_simd_target(""); }

  static void expect_the_oracles(const std::vector<std::uint16_t>& row) {
    for (const Format& format : kFormats) {
      const Quantised expected = by_oracle(format, row);
      for (const std::string& name : host::simd_target_names()) {
        host::use_simd_target(name);
        const Quantised actual = by_kernel(format, reinterpret_cast<const std::byte*>(row.data()), row.size());
        SCOPED_TRACE(fmt::format("{}, {} elements, {}, powers {}", name, row.size(), to_string(format.scales),
                                 format.powers_of_two));
        ASSERT_EQ(compare_bytes(actual.scales.data(), expected.scales.data(), expected.scales.size(), "scales"),
                  std::nullopt);
        ASSERT_EQ(compare_bytes(actual.row.data(), expected.row.data(), expected.row.size(), "row"), std::nullopt);
      }
    }
  }
};

// Sorted, so that a block has values of one size; and stirred, so that it has those of all.
TEST_F(Fp8Kernels, EveryBf16) {
  std::vector<std::uint16_t> row(kNumBf16);
  std::iota(row.begin(), row.end(), std::uint16_t{0});
  expect_the_oracles(row);
  constexpr std::uint32_t kOddStep = 40503;
  for (std::uint32_t idx = 0; idx < kNumBf16; ++idx) row[idx] = static_cast<std::uint16_t>(idx * kOddStep);
  expect_the_oracles(row);
}

TEST_F(Fp8Kernels, EveryLength) {
  for (std::size_t hidden = 8; hidden <= 640; hidden += 8) {
    std::vector<std::uint16_t> row;
    for (std::size_t idx = 0; idx < hidden; ++idx) {
      const std::uint64_t bits = mix(hidden, idx);
      row.push_back(static_cast<std::uint16_t>((bits & 0x80ff) | (0x3b + (bits >> 20) % 8) << 8));
    }
    expect_the_oracles(row);
  }
}

TEST_F(Fp8Kernels, RowsBeginAnywhereAndNothingElseIsWritten) {
  constexpr std::size_t kHidden = 152;
  const std::vector<std::uint16_t> row = bf16_row(std::vector<float>(kHidden, 3.0F));
  const Format format{ScaleFormat::kUe8m0, true};
  const Quantised expected = by_oracle(format, row);
  for (std::size_t shift = 0; shift < 16; ++shift) {
    std::vector<std::byte> source(2 * kHidden + 16);
    std::memcpy(source.data() + shift, row.data(), 2 * kHidden);
    EXPECT_TRUE(by_kernel(format, source.data() + shift, kHidden) == expected) << shift;
    std::vector<std::byte> target(kHidden + 32, std::byte{0x11});
    std::array<std::byte, 12> scales{};
    scales.fill(std::byte{0x11});
    host::quantise_row({.source = source.data() + shift,
                        .hidden = kHidden,
                        .format = format.scales,
                        .powers_of_two = true,
                        .row = target.data() + shift,
                        .scales = scales.data() + 4});
    EXPECT_TRUE(std::equal(expected.row.begin(), expected.row.end(), target.begin() + static_cast<long>(shift)));
    EXPECT_EQ(std::count(target.begin(), target.begin() + static_cast<long>(shift), std::byte{0x11}),
              static_cast<long>(shift));
    EXPECT_EQ(std::count(target.begin() + static_cast<long>(shift + kHidden), target.end(), std::byte{0x11}),
              static_cast<long>(32 - shift));
    EXPECT_EQ(scales[3], std::byte{0x11});
    EXPECT_EQ(scales[8], std::byte{0x11});
  }
}

}  // namespace
}  // namespace epistle
